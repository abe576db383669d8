"""Recycling what a capacity drops."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from gatelab.routers.balance.scope import counts
from gatelab.routers.context import Context, Selection
from gatelab.routers.guarantees import Guarantees
from gatelab.routers.select.capacity import Capacity, slots
from gatelab.routers.select.grouping import Group


class Recycle(nn.Module):
    """One expert per token; in training those past an expert's capacity go to random experts that have room.

    C = ceil(T·cf/E) as in `Capacity`, dropped by position. A recycled token has two choices: the first, dropped, and
    the second, kept, drawn uniformly over the places that are left (default generator). With cf ≥ 1 there is room for
    all. Evaluation has no capacity.

    Args:
        select: a selection of one expert per token.
        capacity_factor: cf.
        group: `sequence` or `batch`.

    Source: Hunyuan-Large, arXiv 2411.02265, §2.2.2 ("recycle routing").
    """

    def __init__(self, select: nn.Module, capacity_factor: float, group: Group = "batch") -> None:
        super().__init__()
        self.capacity = Capacity(select, capacity_factor, group=group)
        self.capacity_factor = capacity_factor

    @property
    def k(self) -> int | None:
        """Experts per token of the selection."""
        return self.capacity.k

    def forward(self, scores_TE: Tensor, ctx: Context) -> Selection:
        selection = self.capacity(scores_TE, ctx)
        if not ctx.training:
            return selection
        assert selection.keep is not None
        E, G = ctx.num_experts, ctx.shape[0] if self.capacity.group == "sequence" else 1
        S = selection.ids.shape[0] // max(G, 1)
        ids_GS, keep_GS = selection.ids.view(G, S), selection.keep.view(G, S)
        C_G = slots((ids_GS >= 0).sum(1), self.capacity_factor, E)
        taken_GE = counts(torch.where(keep_GS, ids_GS, -1), E)
        C = slots(S, self.capacity_factor, E)
        place_C = torch.arange(C, device=ids_GS.device)
        free_GEC = (place_C >= taken_GE[:, :, None]) & (place_C < C_G[:, None, None])
        # Free places first, in random order: the i-th dropped token takes the i-th of them.
        lot_GN = torch.rand(G, E * C, device=ids_GS.device) + (~free_GEC).flatten(1)
        expert_GN = lot_GN.argsort(dim=1) // C if C else lot_GN.long()
        dropped_GS = (ids_GS >= 0) & ~keep_GS
        rank_GS = dropped_GS.cumsum(1) - 1
        again_GS = dropped_GS & (rank_GS < free_GEC.sum((1, 2))[:, None])
        second_GS = expert_GN.gather(1, torch.where(again_GS, rank_GS, 0)) if E * C else rank_GS
        second_GS = torch.where(again_GS, second_GS, -1)
        return replace(
            selection,
            ids=torch.stack([ids_GS, second_GS], dim=-1).view(-1, 2),
            keep=torch.stack([keep_GS, again_GS], dim=-1).view(-1, 2),
            complete=False,
        )

    def guarantees(self, training: bool) -> Guarantees:
        g = self.capacity.guarantees(training)
        return replace(g, experts_per_token=None) if training else g
