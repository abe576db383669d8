"""Losses whose coefficient follows what they are for: the sparsity, or the drop rate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gatelab.routers.balance.base import Balance
from gatelab.routers.context import Context
from gatelab.routers.routing import Summary


class SparsityLoss(Balance):
    """λ · E · Σ f_i P_i on ReLU scores, λ ← λ · α^sign(1 − K/E − sparsity); f_i = n_i/(K·T), P_i = mean score.

    A load-weighted L1 norm of the gates: with every expert at its share K·T/E it is λ · mean_t Σ_i score_ti. Where more
    is chosen than K per token, λ grows until scores fall below 0; it stays within 1e-12…1, without which a long time on
    one side would take as long to undo. Counts add up, so the state after gradient accumulation is that of the whole
    batch, to the bit (as far as it chose the same).

    Args:
        num_experts: E.
        top_k: K, the mean number of experts per token aimed at.
        initial: λ₀.
        factor: α.

    State: `coefficient` (), λ.

    Source: ReMoE, arXiv 2412.14711, §3.3-3.4. Deviations: one λ per gate, from its own sparsity (the paper averages
        over layers), and its bounds.
    """

    stateful = True
    coefficient: Tensor
    LOWEST, HIGHEST = 1e-12, 1.0

    def __init__(self, num_experts: int, top_k: int, initial: float = 1e-8, factor: float = 1.2) -> None:
        super().__init__()
        self.num_experts, self.top_k, self.factor = num_experts, top_k, factor
        self.register_buffer("coefficient", torch.tensor(initial))

    def losses(self, ctx: Context) -> dict[str, Tensor]:
        tokens = ctx.hidden_TD.shape[0] if ctx.mask_T is None else ctx.mask_T.sum()
        load_E = ctx.requested / (self.top_k * tokens + (tokens == 0))
        return {"sparsity": self.coefficient * self.num_experts * (load_E * ctx.mean(ctx.scores)).sum()}

    def update(self, summaries: Sequence[Summary]) -> None:
        chosen = torch.stack([s.requested.double().sum() for s in summaries]).sum()
        tokens = torch.stack([s.num_tokens for s in summaries]).double().sum()
        # sign(1 − K/E − (1 − n/(E·T))), with integers under the sign: exactly at the aim λ stays.
        step = self.factor ** (chosen - self.top_k * tokens).sign()
        self.coefficient.copy_((self.coefficient * step).clamp(self.LOWEST, self.HIGHEST))

    def extra_repr(self) -> str:
        return f"top_k={self.top_k}, factor={self.factor}"


class DeviationLoss(Balance):
    """a · Σ_i (1/E − P_i)², a ← 0.99 a + 0.01 · min(d/5, 0.01), d = the share of assignments that was dropped.

    P_i is the mean probability of expert i; 0 at perfect balance. The coefficient follows the drop rate of its own
    layer: without a capacity nothing is dropped, and a decays to 0. Drops and requests add up over micro-batches, so
    the state after gradient accumulation is that of the whole batch, to the bit (as far as it chose the same).

    Args:
        initial: a₀ (unpublished).
        sensitivity: ξ, 1/5.
        maximum: a_max, 0.01.
        decay: 0.99.

    State: `coefficient` (), a.

    Source: Skywork-MoE, arXiv 2406.06563, §2 equation 4 (recalled, unverified) and §4.2, equations 7-9.
    """

    stateful = True
    coefficient: Tensor

    def __init__(
        self, initial: float = 0.01, sensitivity: float = 0.2, maximum: float = 0.01, decay: float = 0.99
    ) -> None:
        super().__init__()
        self.sensitivity, self.maximum, self.decay = sensitivity, maximum, decay
        self.register_buffer("coefficient", torch.tensor(initial))

    def losses(self, ctx: Context) -> dict[str, Tensor]:
        mean_E = ctx.mean(ctx.probabilities)
        return {"deviation": self.coefficient * (1 / ctx.num_experts - mean_E).square().sum()}

    def update(self, summaries: Sequence[Summary]) -> None:
        requested = torch.stack([s.requested.double().sum() for s in summaries]).sum()
        kept = torch.stack([s.tokens_per_expert.double().sum() for s in summaries]).sum()
        wanted = (self.sensitivity * (requested - kept) / requested.clamp(min=1)).clamp(max=self.maximum)
        self.coefficient.copy_(self.decay * self.coefficient + (1 - self.decay) * wanted)

    def extra_repr(self) -> str:
        return f"sensitivity={self.sensitivity}, maximum={self.maximum}, decay={self.decay}"
