"""For gates that do not look at the hidden states."""

from __future__ import annotations

from torch import Tensor, nn

from gatelab.routers.context import Context


class NoScore(nn.Module):
    """Zeros: for gates that do not look at the hidden states (dense, random, round-robin)."""

    def __init__(self, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.hidden_size, self.num_experts = hidden_size, num_experts

    def forward(self, ctx: Context) -> Tensor:
        return ctx.hidden.new_zeros(ctx.hidden_TD.shape[0], self.num_experts)

    def flops(self, T: int) -> int:
        """0."""
        return 0
