"""Auxiliary losses, each with its value at perfect balance. Padding is in none of them."""

from __future__ import annotations

from torch import Tensor

from gatelab.routers.balance.base import Balance
from gatelab.routers.context import Context


class SwitchLoss(Balance):
    """coefficient · E · Σ f_i P_i; 1 · coefficient at perfect balance, for any K.

    f_i is the share of all requested assignments that expert i has, P_i the mean over real tokens of its probability.

    Args:
        coefficient: α; Switch uses 0.01.

    Source: Switch Transformers, arXiv 2101.03961, §2.2, equations 4-6 (there K = 1).
    """

    def __init__(self, coefficient: float) -> None:
        super().__init__()
        self.coefficient = coefficient

    def losses(self, ctx: Context) -> dict[str, Tensor]:
        share_E = ctx.requested / ctx.requested.sum().clamp(min=1)
        mean_E = ctx.mean(ctx.probabilities)
        return {"switch": self.coefficient * ctx.num_experts * (share_E * mean_E).sum()}

    def extra_repr(self) -> str:
        return f"coefficient={self.coefficient}"


class ZLoss(Balance):
    """coefficient · mean over real tokens of (logsumexp z)², on raw logits; keeps them small.

    At z = 0 it is coefficient · (ln E)².

    Source: ST-MoE, arXiv 2202.08906, §4.2, equation 5.
    """

    def __init__(self, coefficient: float) -> None:
        super().__init__()
        self.coefficient = coefficient

    def losses(self, ctx: Context) -> dict[str, Tensor]:
        return {"z": self.coefficient * ctx.mean(ctx.logits.logsumexp(dim=-1).square())}

    def extra_repr(self) -> str:
        return f"coefficient={self.coefficient}"
