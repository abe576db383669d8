"""Scores with a hidden layer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from gatelab.routers.checks import check_positive
from gatelab.routers.context import Context


class MLPScore(nn.Module):
    """z = W₂ gelu(W₁ x + b₁) + b₂. H·(D + 1) + E·(H + 1) parameters.

    Args:
        hidden_size: D.
        num_experts: E.
        width: H; default D/2, at least 1.

    Source: arXiv 2506.16419 (width and activation unverified).
    """

    def __init__(self, hidden_size: int, num_experts: int, width: int | None = None) -> None:
        super().__init__()
        self.hidden_size, self.num_experts = hidden_size, num_experts
        check_positive(width=width)
        self.width = max(hidden_size // 2, 1) if width is None else width
        self.first = nn.Linear(hidden_size, self.width)
        self.second = nn.Linear(self.width, num_experts)

    def forward(self, ctx: Context) -> Tensor:
        return self.second(F.gelu(self.first(ctx.hidden_TD)))

    def flops(self, T: int) -> int:
        """2·T·H·(D + E)."""
        return 2 * T * self.width * (self.hidden_size + self.num_experts)

    def extra_repr(self) -> str:
        return f"hidden_size={self.hidden_size}, num_experts={self.num_experts}, width={self.width}"


class HadamardScore(nn.Module):
    """z = W₃ (x ⊙ (W₂ gelu(W₁ x + b₁) + b₂)) + b₃: an MLP, D wide, decides which features of x the experts see.

    2·D·(D + 1) + E·(D + 1) parameters. Quadratic in x: ten times the input is about a hundred times the logit.

    Args:
        hidden_size: D.
        num_experts: E.

    Source: the "MLP-Hadamard" router of arXiv 2506.16419 (form unverified: as public reimplementations have it).
    """

    def __init__(self, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.hidden_size, self.num_experts = hidden_size, num_experts
        self.first = nn.Linear(hidden_size, hidden_size)
        self.second = nn.Linear(hidden_size, hidden_size)
        self.third = nn.Linear(hidden_size, num_experts)

    def forward(self, ctx: Context) -> Tensor:
        x_TD = ctx.hidden_TD
        return self.third(x_TD * self.second(F.gelu(self.first(x_TD))))

    def flops(self, T: int) -> int:
        """2·T·D·(2·D + E)."""
        return 2 * T * self.hidden_size * (2 * self.hidden_size + self.num_experts)

    def extra_repr(self) -> str:
        return f"hidden_size={self.hidden_size}, num_experts={self.num_experts}"
