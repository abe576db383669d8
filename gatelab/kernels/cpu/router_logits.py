"""The linear score by oneDNN, with its two gradients, which are products of the same kind."""

from typing import Any

import torch
from torch import Tensor

from gatelab.kernels.cpu._gemm import _ONEDNN
from gatelab.kernels.cpu._memory import empty
from gatelab.kernels.cpu._plain import is_plain
from gatelab.kernels.reference.router_logits import router_logits as reference

_linear = torch.ops.mkldnn._linear_pointwise.default
_WORTH_ONEDNN = 1 << 23  # multiply-adds: below, MKL is as fast, and its code is the one that other layers keep in cache


def router_logits(
    hidden_TD: Tensor, weight_ED: Tensor, bias_E: Tensor | None = None, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """See `gatelab.kernels.router_logits`. Few tokens, another `dtype` than float32, and what is traced or counted run
    in the reference, whose operators compilers and FLOP counters know.
    """
    worth = _ONEDNN and dtype == torch.float32 and hidden_TD.shape[0] * weight_ED.numel() >= _WORTH_ONEDNN
    if not worth or not is_plain(hidden_TD):
        return reference(hidden_TD, weight_ED, bias_E, dtype=dtype)
    logits_TE = _Product.apply(hidden_TD, weight_ED)
    return logits_TE if bias_E is None else logits_TE + bias_E.to(dtype)


class _Product(torch.autograd.Function):
    """a · bᵀ in float32 of two matrices of any dtype; what is kept for the backward pass keeps its own."""

    @staticmethod
    def forward(a_MK: Tensor, b_NK: Tensor) -> Tensor:
        return _linear(_cast(a_MK, torch.float32), _cast(b_NK, torch.float32), None, "none", [], "")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (grad_MN,) = grads
        a_MK, b_NK = ctx.saved_tensors
        a_wanted, b_wanted = ctx.needs_input_grad
        grad_a_MK = _cast(_Product.apply(grad_MN, b_NK.t()), a_MK.dtype) if a_wanted else None
        grad_b_NK = _cast(_Product.apply(grad_MN.t(), a_MK.t()), b_NK.dtype) if b_wanted else None
        return grad_a_MK, grad_b_NK


def _cast(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """In recycled memory: the first touch of new pages takes longer than the product. A transposed view stays one."""
    if matrix.dtype == dtype:
        return matrix
    if matrix.t().is_contiguous() and not matrix.is_contiguous():
        return _cast(matrix.t(), dtype).t()
    return empty(matrix.shape, dtype).copy_(matrix)
