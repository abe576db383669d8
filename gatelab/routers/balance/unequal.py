"""A balance loss for experts that are not to be loaded equally."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gatelab.routers.balance.base import Balance
from gatelab.routers.context import Context


class HeterogeneousLoss(Balance):
    """coefficient · Σ η_i f_i P_i, f_i = n_i/T (requested), P_i the mean probability; both over real tokens.

    With f = K·P it is least at P_i ∝ 1/η_i, where it is coefficient · K/Σ(1/η_i): an expert of η = 0.75 is meant to get
    4/3 of what one of η = 1 gets. With all η = 1 and E experts evenly loaded it is coefficient · K/E: there is no
    factor E as in the Switch loss.

    Args:
        coefficient: β; MoE++ uses 0.01.
        costs: η of each expert.

    Source: MoE++, arXiv 2410.07348, §3.3, equation 7.
    """

    costs: Tensor

    def __init__(self, coefficient: float, costs: Sequence[float]) -> None:
        super().__init__()
        self.coefficient = coefficient
        self.register_buffer("costs", torch.tensor(costs, dtype=torch.float32), persistent=False)

    def losses(self, ctx: Context) -> dict[str, Tensor]:
        tokens = ctx.hidden_TD.shape[0] if ctx.mask_T is None else ctx.mask_T.sum()
        load_E = ctx.requested / (tokens + (tokens == 0))
        return {"heterogeneous": self.coefficient * (self.costs * load_E * ctx.mean(ctx.probabilities)).sum()}

    def extra_repr(self) -> str:
        return f"coefficient={self.coefficient}"
