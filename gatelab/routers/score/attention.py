"""The score of Yuan 2.0-M32: attention over experts."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from gatelab import kernels
from gatelab.routers.context import Context
from gatelab.routers.filtering import LocalizedFiltering
from gatelab.routers.guarantees import Guarantees
from gatelab.routers.score.linear import uniform


class AttentionScore(nn.Module):
    """Attention over experts inside one token: z_i = Σ_j softmax_j(q_i·k_j) v_j with q, k, v = W x, each (E,).

    Since z_i is one function of the token applied to q_i, min v ≤ z_i ≤ max v and equal queries tie. 3·D·E parameters.

    Args:
        hidden_size: D.
        num_experts: E.
        lfa: q and k read the LFA-filtered sequence, v the raw one. Then a token's routing also depends on the two
            positions before it.

    Source: Yuan 2.0-M32, arXiv 2405.17976, §2.2. In the released model LFA sits in self-attention, not here.
    """

    def __init__(self, hidden_size: int, num_experts: int, lfa: bool = False) -> None:
        super().__init__()
        self.hidden_size, self.num_experts = hidden_size, num_experts
        self.query = uniform(num_experts, hidden_size)
        self.key = uniform(num_experts, hidden_size)
        self.value = uniform(num_experts, hidden_size)
        self.lfa = LocalizedFiltering(hidden_size) if lfa else None

    def forward(self, ctx: Context) -> Tensor:
        raw_TD = filtered_TD = ctx.hidden_TD
        if self.lfa is not None:
            filtered_TD = self.lfa(ctx.hidden, token_mask=ctx.token_mask, cache=ctx.cache).flatten(0, 1)
        q_TE, k_TE = F.linear(filtered_TD, self.query), F.linear(filtered_TD, self.key)
        return kernels.attention_gate(q_TE, k_TE, F.linear(raw_TD, self.value))

    def flops(self, T: int) -> int:
        """T·(6·D·E + 4·E²), and the filter's."""
        own = T * (6 * self.hidden_size * self.num_experts + 4 * self.num_experts**2)
        return own + (self.lfa.flops(T) if self.lfa is not None else 0)

    def guarantees(self, training: bool) -> Guarantees:
        return Guarantees(token_wise=self.lfa is None)

    def extra_repr(self) -> str:
        return f"hidden_size={self.hidden_size}, num_experts={self.num_experts}"
