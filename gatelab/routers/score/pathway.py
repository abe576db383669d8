"""The score of MoE++: two layers, and the logits of the layer before."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from gatelab.routers.context import Context
from gatelab.routers.score.linear import uniform


class PathwayScore(nn.Module):
    """z = W₂ tanh(W₁ x) + G z', with z' the raw logits of the previous layer's gate, where there is one.

    Hand the Routing of the layer before to the call as `previous`; gradients flow back into it.

    Args:
        hidden_size: D.
        num_experts: E, zero-computation experts included.
        width: of the hidden layer per expert; W₁ is (width·E, D). 8·E·D + 9·E² parameters at the default of 8.

    Source: MoE++, arXiv 2410.07348, §3.2, equation 6 (one layer there); two layers with tanh in the released code.
    """

    def __init__(self, hidden_size: int, num_experts: int, width: int = 8) -> None:
        super().__init__()
        self.hidden_size, self.num_experts = hidden_size, num_experts
        self.first = uniform(width * num_experts, hidden_size)
        self.second = uniform(num_experts, width * num_experts)
        self.residual = uniform(num_experts, num_experts)

    def forward(self, ctx: Context) -> Tensor:
        logits_TE = F.linear(F.linear(ctx.hidden_TD, self.first).tanh(), self.second)
        if ctx.previous is None:
            return logits_TE
        before_TE = ctx.previous.router_logits
        if before_TE.shape != logits_TE.shape:
            raise ValueError(
                f"previous has logits of shape {tuple(before_TE.shape)}, this gate {tuple(logits_TE.shape)}; give "
                "layers that share gating residuals the same tokens and experts"
            )
        return logits_TE + F.linear(before_TE.to(logits_TE.dtype), self.residual)

    def flops(self, T: int) -> int:
        """T·(2·D·H + 2·H·E + 2·E²) with H hidden units, as if there were a layer before."""
        H, E = self.first.shape[0], self.num_experts
        return 2 * T * (self.hidden_size * H + H * E + E * E)

    def extra_repr(self) -> str:
        return f"hidden_size={self.hidden_size}, num_experts={self.num_experts}"
