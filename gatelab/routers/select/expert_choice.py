"""Experts choose tokens."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor, nn

from gatelab.routers.context import Context, Selection
from gatelab.routers.guarantees import Guarantees
from gatelab.routers.routing import ranked
from gatelab.routers.select.grouping import Group, check_group, grouped


class ExpertChoice(nn.Module):
    """Each expert takes the C = min(T, max(1, ceil(T·cf/E))) tokens of its column with the largest scores.

    A token is taken by any number of experts, from none to E. Whether it is taken depends on the tokens after it:
    neither causal nor usable for generation as it is.

    Args:
        capacity_factor: cf, the mean number of experts per token.
        group: tokens compete within their row (`sequence`) or within the whole `batch`; T counts real tokens of one.

    Source: Zhou et al. 2022, arXiv 2202.09368, §3.2.
    """

    def __init__(self, capacity_factor: float | Fraction, group: Group = "batch") -> None:
        super().__init__()
        check_group(group)
        if not capacity_factor > 0:
            raise ValueError(f"capacity_factor={capacity_factor} takes no token; use a positive number")
        self.capacity_factor, self.group = capacity_factor, group
        # Kept as an exact ratio of integers: in floats ceil(50 · 1.1) is 56.
        self._ratio = Fraction(str(capacity_factor)).as_integer_ratio()

    def forward(self, scores_TE: Tensor, ctx: Context) -> Selection:
        scores_GSE, mask_GS = grouped(scores_TE, ctx, self.group)
        G, S, E = scores_GSE.shape
        above, below = self._ratio[0], self._ratio[1] * E
        C = min(S, max(1, -(-S * above // below)))
        if mask_GS is not None:
            scores_GSE = scores_GSE.masked_fill(~mask_GS[:, :, None], -torch.inf)
        token_GCE = scores_GSE.topk(C, dim=1).indices
        taken_GCE = torch.ones_like(token_GCE, dtype=torch.bool)
        if mask_GS is not None:
            real_G = mask_GS.sum(1)
            wanted_G = -(-real_G * above // below)
            C_G = torch.minimum(wanted_G.clamp(min=1), real_G)
            taken_GCE = (torch.arange(C, device=C_G.device) < C_G[:, None])[:, :, None].expand_as(token_GCE)
        mask_TE = torch.zeros_like(scores_GSE, dtype=torch.bool).scatter(1, token_GCE, taken_GCE).view(G * S, E)
        ids, _ = ranked(mask_TE, scores_TE)
        return Selection(ids, max_assignments=G * E * C)

    def guarantees(self, training: bool) -> Guarantees:
        return Guarantees(causal=False, token_wise=False, dropless=False, max_load=1.0)

    def extra_repr(self) -> str:
        return f"capacity_factor={self.capacity_factor}, group={self.group!r}"
