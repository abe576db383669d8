"""The linear score, and the scale every projection starts at."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gatelab import kernels
from gatelab.routers.context import Context


def uniform(*shape: int) -> nn.Parameter:
    """Uniform within 1/√fan-in, the default of `nn.Linear`."""
    bound = 1 / math.sqrt(shape[-1])
    return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))


class LinearScore(nn.Module):
    """z = x Wᵀ: Mixtral, Switch, most gates. E·D parameters.

    Args:
        hidden_size: D.
        num_experts: E.
        bias: adds a learned (E,) to the logits.
    """

    casts = True  # its parameters itself, without a copy of the hidden states
    shows_nonfinite = True  # NaN or inf in a token's hidden state is NaN or inf in all its logits

    def __init__(self, hidden_size: int, num_experts: int, bias: bool = False) -> None:
        super().__init__()
        self.hidden_size, self.num_experts = hidden_size, num_experts
        self.weight = uniform(num_experts, hidden_size)
        self.bias = nn.Parameter(torch.zeros(num_experts)) if bias else None

    def forward(self, ctx: Context) -> Tensor:
        dtype = ctx.dtype or ctx.hidden_states.dtype
        return kernels.router_logits(ctx.hidden_states.flatten(0, 1), self.weight, self.bias, dtype=dtype)

    def flops(self, T: int) -> int:
        """2·T·D·E."""
        return 2 * T * self.hidden_size * self.num_experts

    def extra_repr(self) -> str:
        return f"hidden_size={self.hidden_size}, num_experts={self.num_experts}"
