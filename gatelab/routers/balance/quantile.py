"""Prices from quantiles: each expert's price is where exactly its share of the tokens would still come."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gatelab.routers.balance.base import Balance, mean_statistic
from gatelab.routers.context import Context
from gatelab.routers.guarantees import Guarantees
from gatelab.routers.routing import Summary


def expert_cutoff(values_TE: Tensor, k: int, mask_T: Tensor | None) -> Tensor:
    """(E,) the (⌊kT/E⌋ + 1)-th largest value of each column, the one that kT/E tokens exceed; T counts real tokens.

    T must be positive. With k = E it is the least value, and without a real token −inf.
    """
    T, E = values_TE.shape
    if mask_T is None:
        rank = min(k * T // E, T - 1)
        return values_TE.kthvalue(T - rank, dim=0).values
    real = mask_T.sum()
    ordered = values_TE.masked_fill(~mask_T[:, None], -torch.inf).sort(dim=0, descending=True).values
    rank = torch.minimum(k * real // E, (real - 1).clamp(min=0))
    return ordered.index_select(0, rank[None])[0]


def token_cutoff(values_TE: Tensor, k: int) -> Tensor:
    """(T, 1) the (k + 1)-th largest value of each row, the one that k experts exceed. k must be below E."""
    return values_TE.topk(k + 1, dim=1).values[:, -1:]


def has_tokens(ctx: Context) -> Tensor:
    """() bool: the forward holds a real token."""
    if ctx.mask_T is None:
        return torch.tensor(ctx.hidden_TD.shape[0] > 0, device=ctx.hidden.device)
    return ctx.mask_T.any()


class QuantilePrices(Balance):
    """β: a_t = (K+1)-th largest of s_t − β; β'_i = (KT/E + 1)-th largest of s_·i − a; next step β'; less the mean of
    β'.

    One exact coordinate step of the dual of balanced assignment per batch, used from the next one on: nothing of a
    batch reaches its own routing, so the gate stays causal. No rate to tune. b = −β in the notation of loss-free bias.
    With KT not a multiple of E the share is rounded down. With K = E there is nothing to balance.

    State: `prices` (E,), 0 at first; after a step the mean of its micro-batches' solutions, which is not the quantile
    of the whole batch (Kimi K3 adds histograms up instead; Megatron takes this mean).

    Args:
        num_experts: E.
        top_k: K.

    Source: Kimi K3, arXiv 2607.24653, equations 14-15 and appendix C, in the form of Megatron-LM's
        `qb_dual_update`; first proposed by Jianlin Su, 2026.
    """

    stateful = True
    prices: Tensor

    def __init__(self, num_experts: int, top_k: int) -> None:
        super().__init__()
        self.num_experts, self.top_k = num_experts, top_k
        self.register_buffer("prices", torch.zeros(num_experts))

    def adjust(self, scores_TE: Tensor, ctx: Context) -> Tensor:
        adjusted_TE = scores_TE - self.prices.to(scores_TE.dtype)
        if ctx.training:
            ctx.statistics["quantile_prices"] = self._solved(scores_TE.detach(), adjusted_TE.detach(), ctx)
        return adjusted_TE

    def _solved(self, scores_TE: Tensor, adjusted_TE: Tensor, ctx: Context) -> Tensor:
        if self.top_k == self.num_experts or not scores_TE.shape[0]:
            return self.prices
        prices_E = expert_cutoff(scores_TE - token_cutoff(adjusted_TE, self.top_k), self.top_k, ctx.mask_T)
        return torch.where(has_tokens(ctx), prices_E.to(self.prices.dtype), self.prices)

    def update(self, summaries: Sequence[Summary]) -> None:
        if (prices_E := mean_statistic(summaries, "quantile_prices")) is not None:
            self.prices.copy_(prices_E - prices_E.mean())

    def extra_repr(self) -> str:
        return f"top_k={self.top_k}"


class SweptPrices(Balance):
    """q ≥ 0, solved by a few sweeps on the batch itself: p_t = max(0, (K+1)-th largest of s_t − q), then

    q_i = max(0, (KT/E + 1)-th largest of s_·i − p). In training the batch is routed by its own q: the load is even from
    the first step on, but a token's experts depend on the whole batch. In evaluation the q of the last step is used.
    The clamp comes from "at most KT/E" in the program: q can only press popular experts down.

    State: `prices` (E,), 0 at first; the sweeps start from it; after a step the mean of its micro-batches' solutions,
    which is not the solution of the whole batch. (Deviation: after each sweep the least q is subtracted from all. The
    program does not see a constant in q as long as p > 0, and sweeps that go on from where the last batch ended let q
    drift up until p is 0 and the balance is lost: MaxVio 0.6 after 20 batches of docs/duals.md's stream.)

    Args:
        num_experts: E.
        top_k: K.
        sweeps: how often p and q are solved in turn; the paper tries 2 to 14.

    Source: Sun 2025, arXiv 2502.15451, algorithm 1 (recalled, unverified; the objective and the two clamps agree with
        Kimi K3's account of it, arXiv 2607.24653, appendix C).
    """

    stateful = True
    prices: Tensor

    def __init__(self, num_experts: int, top_k: int, sweeps: int = 4) -> None:
        super().__init__()
        if sweeps < 1:
            raise ValueError(f"sweeps={sweeps} solves nothing; use at least 1")
        self.num_experts, self.top_k, self.sweeps = num_experts, top_k, sweeps
        self.register_buffer("prices", torch.zeros(num_experts))

    def adjust(self, scores_TE: Tensor, ctx: Context) -> Tensor:
        prices_E = self.prices
        if ctx.training:
            prices_E = ctx.statistics["swept_prices"] = self._swept(scores_TE.detach(), ctx)
        return scores_TE - prices_E.to(scores_TE.dtype)

    def _swept(self, scores_TE: Tensor, ctx: Context) -> Tensor:
        if self.top_k == self.num_experts or not scores_TE.shape[0]:
            return self.prices
        prices_E = self.prices.to(scores_TE.dtype)
        for _ in range(self.sweeps):
            cutoff_T1 = token_cutoff(scores_TE - prices_E, self.top_k).clamp(min=0)
            prices_E = expert_cutoff(scores_TE - cutoff_T1, self.top_k, ctx.mask_T).clamp(min=0)
            prices_E = prices_E - prices_E.min()
        return torch.where(has_tokens(ctx), prices_E.to(self.prices.dtype), self.prices)

    def update(self, summaries: Sequence[Summary]) -> None:
        if (prices_E := mean_statistic(summaries, "swept_prices")) is not None:
            self.prices.copy_(prices_E)

    def guarantees(self, training: bool) -> Guarantees:
        return Guarantees(causal=not training, token_wise=not training, stateful=True)

    def extra_repr(self) -> str:
        return f"top_k={self.top_k}, sweeps={self.sweeps}"
