"""The score of Soft MoE: tokens against slots, by angle."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelab.routers.context import Context
from gatelab.routers.score.linear import uniform


class SlotScore(nn.Module):
    """z = scale · x̂ · φ̂, token and slot both of length 1. D·E·P + 1 parameters.

    Args:
        hidden_size: D.
        num_experts: E.
        slots_per_expert: P.
        eps: added to the squared length.

    Returns (called):
        (T, E·P), an expert's slots side by side.

    Source: Soft MoE, arXiv 2308.00951, §2.3 and appendix E (the scale is learned and starts at 1).
    """

    def __init__(self, hidden_size: int, num_experts: int, slots_per_expert: int = 1, eps: float = 1e-6) -> None:
        super().__init__()
        if slots_per_expert < 1:
            raise ValueError(f"slots_per_expert={slots_per_expert} leaves an expert nothing to do; use at least 1")
        self.hidden_size, self.num_experts, self.slots_per_expert = hidden_size, num_experts, slots_per_expert
        self.eps = eps
        self.slots = uniform(num_experts * slots_per_expert, hidden_size)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, ctx: Context) -> Tensor:
        return self.scale * F.linear(self._unit(ctx.hidden_TD), self._unit(self.slots))

    def _unit(self, x_ND: Tensor) -> Tensor:
        return x_ND * (x_ND.square().sum(dim=1, keepdim=True) + self.eps).rsqrt()

    def flops(self, T: int) -> int:
        """T·6·D·E·P: the logits, and as much again to mix slots from tokens and tokens from slots."""
        return 6 * T * self.hidden_size * self.num_experts * self.slots_per_expert

    def extra_repr(self) -> str:
        sizes = f"hidden_size={self.hidden_size}, num_experts={self.num_experts}"
        return f"{sizes}, slots_per_expert={self.slots_per_expert}"
