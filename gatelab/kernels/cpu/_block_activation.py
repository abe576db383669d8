"""The named activations on blocks of rows, with their derivatives, writing into the buffers they are given."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gatelab.kernels.activations import ACTIVATIONS
from gatelab.kernels.cpu._gemm import padded, zero_padding
from gatelab.kernels.cpu._memory import Scratch

aten = torch.ops.aten


class _Pointwise(NamedTuple):
    """`function(h, out)` and `gradient(grad, h, out)`."""

    function: Callable[[Tensor, Tensor], object]
    gradient: Callable[[Tensor, Tensor, Tensor], object]


_SILU = _Pointwise(
    lambda h, out: aten.silu.out(h, out=out),
    lambda grad, h, out: aten.silu_backward.grad_input(grad, h, grad_input=out),
)
_GELU = _Pointwise(
    lambda h, out: aten.gelu.out(h, out=out),
    lambda grad, h, out: aten.gelu_backward.grad_input(grad, h, grad_input=out),
)
_RELU = _Pointwise(
    lambda h, out: torch.clamp(h, min=0, out=out),
    lambda grad, h, out: aten.threshold_backward.grad_input(grad, h, 0, grad_input=out),
)
_RELU2 = _Pointwise(
    lambda h, out: torch.clamp(h, min=0, out=out).square_(),
    lambda grad, h, out: torch.clamp(h, min=0, out=out).mul_(grad).mul_(2),
)
_POINTWISE = {"swiglu": _SILU, "geglu": _GELU, "gelu": _GELU, "silu": _SILU, "relu": _RELU, "relu2": _RELU2}


class BlockActivation:
    """One of `gatelab.kernels.activations.ACTIVATIONS` on blocks h (n, J) -> a, with rows of zeros up to the size P."""

    def __init__(self, name: str) -> None:
        self.gated = ACTIVATIONS[name].gated
        self.pointwise = _POINTWISE[name]

    def forward(self, h_nJ: Tensor, scratch: Scratch) -> tuple[Tensor, Tensor]:
        """a (P, I), and the activated gate half (n, I) for `backward` (un-gated: nothing of use)."""
        n, J = h_nJ.shape
        a_PI = zero_padding(scratch.take(padded(n), J // 2 if self.gated else J), n)
        if not self.gated:
            self.pointwise.function(h_nJ, a_PI[:n])
            return a_PI, a_PI
        gate_nI, up_nI = h_nJ.chunk(2, dim=1)
        activated_nI = scratch.take(n, J // 2)
        self.pointwise.function(gate_nI, activated_nI)
        torch.mul(activated_nI, up_nI, out=a_PI[:n])
        return a_PI, activated_nI

    def backward(self, grad_nI: Tensor, h_nJ: Tensor, activated_nI: Tensor, scratch: Scratch) -> Tensor:
        """The gradient of h, (P, J). Overwrites `grad_nI`."""
        n, J = h_nJ.shape
        grad_PJ = zero_padding(scratch.take(padded(n), J), n)
        if not self.gated:
            self.pointwise.gradient(grad_nI, h_nJ, grad_PJ[:n])
            return grad_PJ
        gate_nI, up_nI = h_nJ.chunk(2, dim=1)
        grad_gate_nI, grad_up_nI = grad_PJ[:n].chunk(2, dim=1)
        torch.mul(grad_nI, activated_nI, out=grad_up_nI)
        self.pointwise.gradient(grad_nI.mul_(up_nI), gate_nI, grad_gate_nI)
        return grad_PJ
