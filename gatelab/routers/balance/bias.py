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
        self.num_experts, self.rate, self.centred = num_experts, rate, centred
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


class ProportionalBias(Balance):
    """Δb_i = μ · (K_e/(K·N) − T_i/(K·T)) for the N real experts: a step in proportion to the miss.

    T_i counts what was requested of expert i, T the real tokens, both over all micro-batches of the step. K_e of a
    token's K choices are to be real experts, on average; zero-computation experts (ids N and above) keep b = 0 and take
    the rest. Counts add up, so the state after gradient accumulation is that of the whole batch, to the bit (as far as
    it chose the same).

    Args:
        num_experts: E, all columns.
        top_k: K.
        rate: μ, in units of the selection scores. The paper lets it decay and gives no value (unverified).
        num_real: N; default E.
        expected: K_e; default K.

    State: `bias` (E,), 0 at first.

    Raises:
        ValueError: `expected` is not within what N real experts allow, or `num_real` not within 1…E.

    Source: LongCat-Flash, arXiv 2509.01322, §2.1.1 (the PID-like controller; section number unverified).
    """

    stateful = True
    bias: Tensor

    def __init__(
        self,
        num_experts: int,
        top_k: int,
        rate: float,
        num_real: int | None = None,
        expected: float | None = None,
    ) -> None:
        super().__init__()
        num_real = num_experts if num_real is None else num_real
        expected = float(top_k) if expected is None else expected
        if not 1 <= num_real <= num_experts:
            raise ValueError(f"num_real={num_real} does not fit num_experts={num_experts}; choose 1 to {num_experts}")
        if not 0 < expected <= min(top_k, num_real):
            raise ValueError(
                f"expected={expected} real experts of top_k={top_k} and {num_real}: choose a number between"
            )
        self.num_experts, self.top_k, self.rate = num_experts, top_k, rate
        self.num_real, self.expected = num_real, expected
        self.register_buffer("bias", torch.zeros(num_experts))

    def adjust(self, scores_TE: Tensor, ctx: Context) -> Tensor:
        return scores_TE + self.bias.to(scores_TE.dtype)

    def update(self, summaries: Sequence[Summary]) -> None:
        N = self.num_real
        load_N = torch.stack([s.requested for s in summaries]).double().sum(0)[:N]
        tokens = torch.stack([s.num_tokens for s in summaries]).double().sum()
        miss_N = self.expected / (self.top_k * N) - load_N / (self.top_k * tokens.clamp(min=1))
        self.bias[:N].add_((self.rate * torch.where(tokens > 0, miss_N, 0)).to(self.bias.dtype))

    def extra_repr(self) -> str:
        return f"top_k={self.top_k}, rate={self.rate}, num_real={self.num_real}, expected={self.expected}"
