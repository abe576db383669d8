"""The linear score in numba (extra `fast`) or by oneDNN, and its two gradients, which are products too."""

from typing import Any

import torch
from torch import Tensor

from gatelab.kernels.cpu._gemm import _ONEDNN
from gatelab.kernels.cpu._memory import empty
from gatelab.kernels.cpu._plain import (
    is_plain,
    score_gradients_in_numba,
    scores_in_numba,
    scores_in_tiles,
)
from gatelab.kernels.reference.router_logits import router_logits as reference

_linear = torch.ops.mkldnn._linear_pointwise.default
_WORTH_ONEDNN = 1 << 23  # multiply-adds: below, MKL is as fast, and its code is the one that other layers keep in cache


def router_logits(
    hidden_TD: Tensor, weight_ED: Tensor, bias_E: Tensor | None = None, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """See `gatelab.kernels.router_logits`. Another `dtype` than float32, and what is traced or counted run in the
    reference, whose operators compilers and FLOP counters know.
    """
    worth = _ONEDNN and hidden_TD.shape[0] * weight_ED.numel() >= _WORTH_ONEDNN
    if dtype != torch.float32 or not is_plain(hidden_TD) or not (worth or _fits(hidden_TD, weight_ED)):
        return reference(hidden_TD, weight_ED, bias_E, dtype=dtype)
    learns = torch.is_grad_enabled() and (hidden_TD.requires_grad or weight_ED.requires_grad)
    logits_TE = (_Product.apply if learns else _product)(hidden_TD, weight_ED)
    return logits_TE if bias_E is None else logits_TE + bias_E.to(dtype)


def _fits(a_MK: Tensor, b_NK: Tensor) -> bool:
    return _ONEDNN and (module := scores_in_numba()) is not None and module.fits(a_MK, b_NK)


def _product(a_MK: Tensor, b_NK: Tensor) -> Tensor:
    if _fits(a_MK, b_NK) and (module := scores_in_numba()) is not None:
        tiles = scores_in_tiles() if a_MK.dtype == torch.bfloat16 else None
        return (tiles or module).scores(a_MK, b_NK)
    return _linear(_cast(a_MK, torch.float32), _cast(b_NK, torch.float32), None, "none", [], "")


class _Product(torch.autograd.Function):
    """a · bᵀ in float32 of two matrices of any dtype; what is kept for the backward pass keeps its own."""

    @staticmethod
    def forward(a_MK: Tensor, b_NK: Tensor) -> Tensor:
        return _product(a_MK, b_NK)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (grad_MN,) = grads
        a_MK, b_NK = ctx.saved_tensors
        a_wanted, b_wanted = ctx.needs_input_grad
        if not torch.is_grad_enabled() and _fits(a_MK, b_NK) and (module := score_gradients_in_numba()) is not None:
            grad_MN = grad_MN.contiguous()
            return (
                module.of_hidden(grad_MN, b_NK) if a_wanted else None,
                module.of_weight(grad_MN, a_MK) if b_wanted else None,
            )
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
