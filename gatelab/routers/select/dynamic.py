"""Selections that take a different number of experts for every token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gatelab.routers.context import Context, Selection
from gatelab.routers.guarantees import Guarantees
from gatelab.routers.routing import ranked


class TopP(nn.Module):
    """The shortest prefix of the experts in descending score whose sum exceeds p, the one that crosses it included.

    At least one expert; all of them where rounding, or p ≥ 1, lets no prefix exceed p. The scores must be
    probabilities.

    Args:
        p: the mass to gather, at least 0.

    Source: Dynamic MoE, arXiv 2403.07652, §3.1, equations 3-5.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not p >= 0:
            raise ValueError(f"p={p} is not a probability mass; use a number from 0 to 1")
        self.p = p

    def forward(self, scores_TE: Tensor, ctx: Context) -> Selection:
        ordered_TE, ids = scores_TE.detach().sort(dim=1, descending=True, stable=True)
        mass_TE = ordered_TE.cumsum(dim=1)
        wanted_TE = torch.ones_like(ids, dtype=torch.bool)
        wanted_TE[:, 1:] = mass_TE[:, :-1] <= self.p
        return Selection(torch.where(wanted_TE, ids, -1))

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Positive(nn.Module):
    """Every expert whose score is above 0 (ReLU scores, or scores less a threshold); a token may have none.

    Source: ReMoE, arXiv 2412.14711, §3.1.
    """

    def forward(self, scores_TE: Tensor, ctx: Context) -> Selection:
        ids, _ = ranked(scores_TE.detach() > 0, scores_TE)
        return Selection(ids)

    def guarantees(self, training: bool) -> Guarantees:
        return Guarantees(dropless=False)
