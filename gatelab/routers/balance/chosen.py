"""Teaching a gate to foresee its own choice."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gatelab.routers.balance.base import Balance
from gatelab.routers.context import Context


class ChosenLoss(Balance):
    """coefficient · binary cross-entropy of σ(z_ti) with whether expert i took token t, meaned over tokens and experts.

    coefficient · ln 2 at z = 0, and 0 when the sign of every logit says what was taken: then a token-wise threshold at
    0 makes the choice that needed the whole group. It is no balance loss: the choice itself is balanced.

    Source: Mixture-of-Depths, arXiv 2404.02258, §3.5.
    """

    def __init__(self, coefficient: float) -> None:
        super().__init__()
        self.coefficient = coefficient

    def losses(self, ctx: Context) -> dict[str, Tensor]:
        E, ids = ctx.num_experts, ctx.selection.ids
        taken_TE = torch.zeros(ids.shape[0], E + 1, device=ids.device, dtype=ctx.logits.dtype)
        taken_TE = taken_TE.scatter(1, torch.where(ids >= 0, ids, E), 1.0)[:, :E]
        error_TE = F.binary_cross_entropy_with_logits(ctx.logits, taken_TE, reduction="none")
        return {"chosen": self.coefficient * ctx.mean(error_TE.mean(dim=1))}

    def extra_repr(self) -> str:
        return f"coefficient={self.coefficient}"
