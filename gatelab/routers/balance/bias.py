"""A bias per expert on the selection scores, moved against the load. Weights and losses never see it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gatelab.routers.balance.base import Balance
from gatelab.routers.context import Context
from gatelab.routers.routing import Summary


class SignBias(Balance):
    """b_i += u · sign(n̄ − n_i): a fixed step up for experts below the mean load n̄, down for those above it.

    n_i counts what was requested in all micro-batches of the step, before any drop, padding left out. Counts add up,
    so the state after gradient accumulation is that of the whole batch, to the bit (as far as it chose the same).
    b is −price of the linear program that BASE solves (docs/duals.md); a step of u moves it at most u, so after s steps
    no bias is beyond s·u.

    Args:
        num_experts: E.
        rate: u, in units of the selection scores; 1e-3 is published for sigmoid scores.
        centred: subtract the mean of the step, which keeps the mean of b where it is (torchtitan). It changes no
            selection: top-k does not see a constant.

    State: `bias` (E,), 0 at first.

    Source: Wang et al. 2024, arXiv 2408.15664, §3, algorithm 1; DeepSeek-V3, arXiv 2412.19437, §2.1.2.
    """

    stateful = True
    bias: Tensor

    def __init__(self, num_experts: int, rate: float = 1e-3, centred: bool = False) -> None:
        super().__init__()
        self.rate, self.centred = rate, centred
        self.register_buffer("bias", torch.zeros(num_experts))

    def adjust(self, scores_TE: Tensor, ctx: Context) -> Tensor:
        return scores_TE + self.bias.to(scores_TE.dtype)

    def update(self, summaries: Sequence[Summary]) -> None:
        # In float64 the sum is exact, so that an expert exactly at the mean stays where it is.
        load_E = torch.stack([s.requested for s in summaries]).double().sum(0)
        step_E = self.rate * (load_E.mean() - load_E).sign()
        if self.centred:
            step_E = step_E - step_E.mean()
        self.bias.add_(step_E.to(self.bias.dtype))

    def extra_repr(self) -> str:
        return f"rate={self.rate}, centred={self.centred}"
