"""The cosine score of X-MoE."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelab.routers.checks import check_positive
from gatelab.routers.context import Context
from gatelab.routers.score.linear import uniform


class CosineScore(nn.Module):
    """z_i = exp(min(τ, ln 100)) · cos(W x + b, m_i): tokens and experts meet on a low-dimensional sphere.

    The length of x does not matter, so |z| ≤ 100 whatever the input. P·(D + 1) + E·P + 1 parameters.

    Args:
        hidden_size: D.
        num_experts: E.
        projection: P, the dimension of the sphere.
        temperature: τ starts at ln(1/temperature).

    Source: X-MoE, arXiv 2204.09179, §3; P = 256, the temperature 0.5, its learned logarithm and the bound of 100 are
    those of Microsoft's Tutel (the paper sets P = E/2).
    """

    def __init__(self, hidden_size: int, num_experts: int, projection: int = 256, temperature: float = 0.5) -> None:
        super().__init__()
        check_positive(projection=projection, temperature=temperature)
        self.hidden_size, self.num_experts, self.projection = hidden_size, num_experts, projection
        self.weight = uniform(projection, hidden_size)
        self.bias = nn.Parameter(torch.zeros(projection))
        self.experts = nn.Parameter(torch.randn(num_experts, projection) * 0.01)
        self.log_scale = nn.Parameter(torch.full((), math.log(1 / temperature)))

    def forward(self, ctx: Context) -> Tensor:
        # The eps bounds the gradient at x = 0, where a cosine has none.
        token_TP = F.normalize(F.linear(ctx.hidden_TD, self.weight, self.bias), dim=-1, eps=1e-6)
        expert_EP = F.normalize(self.experts, dim=-1, eps=1e-6)
        return self.log_scale.clamp(max=math.log(100)).exp() * F.linear(token_TP, expert_EP)

    def flops(self, T: int) -> int:
        """2·T·P·(D + E)."""
        return 2 * T * self.projection * (self.hidden_size + self.num_experts)

    def extra_repr(self) -> str:
        return f"hidden_size={self.hidden_size}, num_experts={self.num_experts}, projection={self.projection}"
