"""The exact balanced assignment."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gatelab import kernels
from gatelab.routers.context import Context, Selection
from gatelab.routers.guarantees import Guarantees
from gatelab.routers.select.grouping import Group, check_group, grouped


class BalancedAssignment(nn.Module):
    """In training the exact optimum of Σ scores with every expert at floor…ceil of k·T/E tokens; then top-k.

    Writes the dual prices to `ctx.statistics["prices"]` and starts from those it finds there (see `Prices`).

    Args:
        k: experts per token.
        group: the load is even in every row (`sequence`) or over the `batch`.

    Source: BASE layers, Lewis et al. 2021, arXiv 2103.16716, §3; solved exactly, not by an auction.
    """

    def __init__(self, k: int, group: Group = "batch") -> None:
        super().__init__()
        check_group(group)
        self.k, self.group = k, group

    def forward(self, scores_TE: Tensor, ctx: Context) -> Selection:
        if not ctx.training or not scores_TE.shape[0]:
            return Selection(scores_TE.topk(self.k, dim=-1).indices)
        scores_GSE, mask_GS = grouped(scores_TE.detach(), ctx, self.group)
        start = ctx.statistics.get("prices")
        solved = [
            kernels.balanced_assignment(
                scores_GSE[g], k=self.k, prices=start, token_mask=None if mask_GS is None else mask_GS[g]
            )
            for g in range(scores_GSE.shape[0])
        ]
        ctx.statistics["prices"] = _mean_prices(torch.stack([a.prices for a in solved]), mask_GS, start)
        return Selection(torch.cat([a.expert_ids for a in solved]))

    def guarantees(self, training: bool) -> Guarantees:
        if training:
            return Guarantees(causal=False, token_wise=False, max_load=1.0, experts_per_token=self.k)
        return Guarantees(experts_per_token=self.k)

    def extra_repr(self) -> str:
        return f"k={self.k}, group={self.group!r}"


def _mean_prices(prices_GE: Tensor, mask_GS: Tensor | None, start: Tensor | None) -> Tensor:
    """(E,) the mean over groups with a real token; without one, the start prices."""
    if mask_GS is None:
        return prices_GE.mean(0).float()
    real_G1 = mask_GS.any(1, keepdim=True)
    mean_E = torch.where(real_G1, prices_GE, 0).sum(0) / real_G1.sum().clamp(min=1)
    rest_E = torch.zeros_like(mean_E) if start is None else start.to(mean_E)
    return torch.where(real_G1.any(), mean_E, rest_E).float()
