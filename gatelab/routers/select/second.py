"""Leaving later choices to chance."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from gatelab.routers.context import Context, Selection
from gatelab.routers.guarantees import Guarantees


class RandomSecond(nn.Module):
    """Any selection, whose later choices are kept with probability min(1, g_j / (Σ g · threshold)) in training.

    g are the unadjusted scores of the token's choices. The first choice always stays, and the weights do not change:
    what is left out still counts as requested. The draws come from torch's default generator.

    Args:
        select: the selection.
        threshold: the share from which on a choice is always kept; GShard's 2·g₂ is 1/2, ST-MoE uses 0.2.

    Source: GShard, arXiv 2006.16668, §2.2 and algorithm 1 (K = 2); the threshold: ST-MoE, arXiv 2202.08906, appendix
    (unverified: read in public reimplementations, which also extend it to K > 2 as here).
    """

    def __init__(self, select: nn.Module, threshold: float = 0.5) -> None:
        super().__init__()
        if not threshold > 0:
            raise ValueError(f"threshold={threshold} must be positive; the larger, the more choices are left out")
        self.select, self.threshold = select, threshold

    @property
    def k(self) -> int | None:
        """Experts per token of the selection."""
        return getattr(self.select, "k", None)

    def forward(self, scores_TE: Tensor, ctx: Context) -> Selection:
        selection = self.select(scores_TE, ctx)
        if not ctx.training:
            return selection
        gates_TJ = ctx.scores.detach().gather(1, selection.ids.clamp(min=0)).masked_fill(selection.ids < 0, 0)
        share_TJ = gates_TJ / gates_TJ.sum(1, keepdim=True).clamp(min=torch.finfo(gates_TJ.dtype).tiny)
        keep = torch.rand_like(share_TJ) * self.threshold < share_TJ
        keep[:, 0] = True
        return replace(selection, keep=keep if selection.keep is None else keep & selection.keep)

    def guarantees(self, training: bool) -> Guarantees:
        inner = Guarantees.joint([self.select], training)
        return replace(inner, token_wise=False, dropless=False) if training else inner

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}"
