"""Weight: the scores of the chosen experts to combine weights. `weight(gates (T, J), valid (T, J), ctx) -> (T, J)`.

Gates are the unadjusted scores at the selected ids; invalid entries hold 0 and are zeroed again afterwards.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gatelab.routers.context import Context


class Renormalize(nn.Module):
    """Divide by the sum over the token's chosen experts (plus `eps`), so that the weights sum to 1."""

    def __init__(self, eps: float = 0.0) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, gates_TJ: Tensor, valid_TJ: Tensor, ctx: Context) -> Tensor:
        total = gates_TJ.sum(dim=-1, keepdim=True)
        if self.eps:
            total = total + self.eps
        # Unchosen giants can leave a chosen sum of 0 in float32 (0/0); 1/sum² in the gradient overflows below 1e-19.
        return gates_TJ / total.clamp(min=1e-20)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


class SoftmaxOverChosen(nn.Module):
    """Softmax over the token's chosen experts; the gates must be logits (activation `none`)."""

    def forward(self, gates_TJ: Tensor, valid_TJ: Tensor, ctx: Context) -> Tensor:
        # A finite floor instead of -inf: a masked token has no valid entry, and a softmax over nothing is NaN.
        lowest = torch.finfo(gates_TJ.dtype).min
        return torch.where(valid_TJ, gates_TJ, lowest).softmax(dim=-1)


class SigmoidOfChosen(nn.Module):
    """σ of the token's chosen experts; the gates must be logits (activation `none`), so that none ties with another."""

    def forward(self, gates_TJ: Tensor, valid_TJ: Tensor, ctx: Context) -> Tensor:
        return gates_TJ.sigmoid()


class Constant(nn.Module):
    """The same weight for every chosen expert; no gradient reaches the scores."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, gates_TJ: Tensor, valid_TJ: Tensor, ctx: Context) -> Tensor:
        return torch.full_like(gates_TJ, self.value, requires_grad=False)

    def extra_repr(self) -> str:
        return f"value={self.value}"


class Scale(nn.Module):
    """Times a constant (DeepSeek-V3 × 2.5, LongCat × 6), which the shared expert and the residual do not get."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, gates_TJ: Tensor, valid_TJ: Tensor, ctx: Context) -> Tensor:
        return gates_TJ * self.factor

    def extra_repr(self) -> str:
        return f"factor={self.factor}"
