"""Any score on the LFA-filtered sequence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from gatelab.routers.context import Context
from gatelab.routers.filtering import LocalizedFiltering
from gatelab.routers.guarantees import Guarantees


class FilteredScore(nn.Module):
    """What `score` makes of RMSNorm(x + filter(x)), so that a gate sees the two positions before each token.

    Ours, to measure the filter apart from the attention over experts; `AttentionScore(lfa=True)` filters queries and
    keys alone.

    Args:
        score: a score with `hidden_size` and `num_experts`.
    """

    def __init__(self, score: Any) -> None:
        super().__init__()
        self.hidden_size, self.num_experts = score.hidden_size, score.num_experts
        self.score = score
        self.lfa = LocalizedFiltering(score.hidden_size)

    def forward(self, ctx: Context) -> Tensor:
        return self.score(replace(ctx, hidden_states=self.lfa(ctx.hidden, token_mask=ctx.token_mask, cache=ctx.cache)))

    def flops(self, T: int) -> int:
        """The score's and the filter's."""
        return self.score.flops(T) + self.lfa.flops(T)

    def guarantees(self, training: bool) -> Guarantees:
        return replace(Guarantees.joint([self.score], training), token_wise=False)
