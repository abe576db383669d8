"""A threshold per expert on the selection scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gatelab.routers.balance.base import Balance, mean_statistic
from gatelab.routers.balance.quantile import expert_cutoff, has_tokens, token_cutoff
from gatelab.routers.context import Context
from gatelab.routers.routing import Summary


class QuantileThreshold(Balance):
    """c_i, a moving average of the score that K·T/E tokens of a batch exceed; what is positive after it is chosen.

    Each token is compared with thresholds from before its batch, so the gate is causal in training too. Before the
    first update there is nothing to compare with, and every expert open to every token would be density E: until then
    the token's own (K+1)-th largest score is the threshold, which is top-k.

    State: `thresholds` (E,), −inf before the first update, then the mean of its micro-batches' cutoffs (which is not
    the cutoff of the whole batch), and later c ← decay · c + (1 − decay) · that mean.

    Args:
        num_experts: E.
        top_k: K, the mean number of experts per token aimed at.
        decay: of the moving average.

    Source: Expert Threshold routing, arXiv 2603.11535 (there K = 1; the value of the decay is unverified).
    """

    stateful = True
    thresholds: Tensor

    def __init__(self, num_experts: int, top_k: int, decay: float = 0.99) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} is no weight of a moving average; use 0 <= decay < 1")
        self.num_experts, self.top_k, self.decay = num_experts, top_k, decay
        self.register_buffer("thresholds", torch.full((num_experts,), -torch.inf))

    def adjust(self, scores_TE: Tensor, ctx: Context) -> Tensor:
        T, E = scores_TE.shape
        thresholds_E = self.thresholds.to(scores_TE.dtype)
        if self.top_k == E or not T:  # every expert for every token
            if ctx.training:
                ctx.statistics["thresholds"] = self.thresholds
            return scores_TE - thresholds_E
        if ctx.training:
            cutoff_E = expert_cutoff(scores_TE.detach(), self.top_k, ctx.mask_T).to(self.thresholds.dtype)
            ctx.statistics["thresholds"] = torch.where(has_tokens(ctx), cutoff_E, self.thresholds)
        return scores_TE - torch.where(thresholds_E.isinf(), token_cutoff(scores_TE.detach(), self.top_k), thresholds_E)

    def update(self, summaries: Sequence[Summary]) -> None:
        if (fresh_E := mean_statistic(summaries, "thresholds")) is None:
            return
        averaged_E = self.decay * self.thresholds + (1 - self.decay) * fresh_E
        self.thresholds.copy_(torch.where(self.thresholds.isinf(), fresh_E, averaged_E))

    def extra_repr(self) -> str:
        return f"top_k={self.top_k}, decay={self.decay}"
