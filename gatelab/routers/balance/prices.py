"""Prices of experts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gatelab.routers.balance.base import Balance, mean_statistic
from gatelab.routers.context import Context
from gatelab.routers.routing import Summary


class Prices(Balance):
    """One price per expert, the dual of the exact assignment, carried from batch to batch.

    In training the assignment starts its search from them; in evaluation they are subtracted from the scores, so that
    a token-wise argmax keeps the balance that was learned. State: `prices` (E,), the mean over the micro-batches of
    the last step (which differs from the prices of the whole batch).
    """

    stateful = True
    prices: Tensor

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.register_buffer("prices", torch.zeros(num_experts))

    def adjust(self, scores_TE: Tensor, ctx: Context) -> Tensor:
        # In training the assignment solves on the scores themselves: with E ∤ kT the loads are not fixed, and the
        # optimum of s - p is not that of s.
        if ctx.training:
            ctx.statistics["prices"] = self.prices
            return scores_TE
        return scores_TE - self.prices.to(scores_TE.dtype)

    def update(self, summaries: Sequence[Summary]) -> None:
        if (prices_E := mean_statistic(summaries, "prices")) is not None:
            self.prices.copy_(prices_E)
