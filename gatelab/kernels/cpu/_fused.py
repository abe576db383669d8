"""Which experts the numba kernels compute, from the tokens to the weighted rows, and with what memory."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gatelab.kernels.cpu._gemm import is_intel
from gatelab.kernels.cpu._memory import Scratches, empty, entries

if TYPE_CHECKING:
    from gatelab.kernels.cpu._expert_forward import Arguments, Piece

_FEW_ROWS = 4  # per expert: with more, a product that reorders the weight is faster
_MODULE = "gatelab.kernels.cpu"
Work = tuple[Callable[["Piece"], None], Tensor]  # what computes the weighted rows of a piece, and where it writes them


def fused(arguments: Arguments, pieces: list[Piece], hidden: Tensor | None) -> Work | None:
    """What computes the weighted rows of a piece, and `hidden` where one is given, and the rows (N, D), still empty.

    None where no kernel fits: they are made for SwiGLU without biases, weights on the output and contiguous parameters.
    """
    if not is_plain(arguments, pieces) or (module := kernels("blocks", arguments)) is None:
        return None
    _, D, I = arguments.down_proj.shape
    x_TD, tokens, weights = arguments.x_TD.contiguous(), arguments.token_index, arguments.weights.float()
    rows_ND, scratches = (
        empty((max(stop for _, _, stop in pieces), D), x_TD.dtype),
        scratches_of(module, arguments, pieces),
    )
    by_row = [entries(t) for t in (tokens.contiguous(), weights.contiguous(), hidden, rows_ND)]
    by_expert = [entries(arguments.up_proj), entries(arguments.down_proj)]

    def work(piece: Piece) -> None:
        e, start, stop = piece
        tokens_n, weights_n, hidden_nJ, rows_nD = (at(start) for at in by_row)
        up_JD, down_DI = (at(e) for at in by_expert)
        with scratches.lend() as scratch:
            place = scratch.take(1, 1).data_ptr()
            module.swiglu_expert(
                x_TD.data_ptr(), tokens_n, stop - start, up_JD, down_DI, weights_n, D, I, hidden_nJ, rows_nD, place
            )

    return work, rows_ND


def is_plain(arguments: Arguments, pieces: list[Piece]) -> bool:
    """Whether these are the experts, and tokens that exist, which the kernels are made for."""
    return (
        _are_swiglu(arguments)
        and bool(pieces)
        # torch's operations say what is wrong, these kernels would read what is not theirs
        and _are_within(arguments, pieces[0].start, max(stop for _, _, stop in pieces))
    )


def _are_swiglu(arguments: Arguments) -> bool:
    return (
        arguments.activation == "swiglu"
        and not arguments.weights_on_input
        and arguments.up_bias is arguments.down_bias is None
        and arguments.up_proj.is_contiguous()
        and arguments.down_proj.is_contiguous()
    )


def _are_within(arguments: Arguments, start: int, stop: int) -> bool:
    first, last = arguments.token_index[:stop].aminmax()
    return start >= 0 and stop <= len(arguments.token_index) and bool(first >= 0) and bool(last < len(arguments.x_TD))


def few_rows(arguments: Arguments) -> Tensor | None:
    """y (T, D), where a kernel for few rows per expert fits."""
    x_TD, tokens, weights = arguments.x_TD, arguments.token_index, arguments.weights
    are_few = 0 < len(tokens) <= _FEW_ROWS * arguments.down_proj.shape[0] and x_TD.dtype in (
        torch.float32,
        torch.bfloat16,
    )
    if not are_few or not _are_swiglu(arguments) or (module := _numba("_few_rows")) is None:
        return None
    vectors = (tokens.contiguous(), arguments.expert_offsets.contiguous(), weights.float().contiguous())
    return module.experts(x_TD.contiguous(), *vectors, arguments.up_proj, arguments.down_proj)


def _numbers(tensor: Tensor) -> np.ndarray:
    """NumPy has no bfloat16."""
    tensor = tensor.detach().contiguous()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def kernels(name: str, arguments: Arguments) -> Any:
    """The kernels of that name for these tokens and this processor, if they fit."""
    _, D, I = arguments.down_proj.shape
    instructions = instructions_for(arguments.x_TD.dtype) if D % 32 == I % 32 == 0 else None
    return _numba(f"{instructions}_{name}") if instructions else None


def scratches_of(module: Any, arguments: Arguments, pieces: list[Piece]) -> Scratches:
    """What a kernel needs for each of these pieces."""
    _, D, I = arguments.down_proj.shape
    most_rows = max(stop - start for _, start, stop in pieces)
    return Scratches(1, (module.scratch_elements(most_rows, D, I),), arguments.x_TD.dtype)


def fused_gradients(
    arguments: Arguments, grad_weights: Tensor | None
) -> Callable[[Tensor, Tensor, slice, Tensor, Tensor], None] | None:
    """From the gradient of the activated rows (n, I) and `hidden` (n, 2·I), at these places of the weights, writes that
    of `hidden` and the weighted activated rows, and the gradient of the weights where it is wanted.

    None where the kernel does not fit: it is made for SwiGLU, weights on the output and I a multiple of 16.
    """
    dtypes = arguments.x_TD.dtype, arguments.weights.dtype
    fits = (
        arguments.activation == "swiglu"
        and not arguments.weights_on_input
        and arguments.down_proj.shape[2] % 16 == 0
        and dtypes in ((torch.float32, torch.float32), (torch.bfloat16, torch.float32))
    )
    if not fits or (module := _numba("_swiglu_gradients")) is None:
        return None
    weights_N = _numbers(arguments.weights)
    grads_N = np.empty_like(weights_N) if grad_weights is None else grad_weights.numpy()

    def write(grad_nI: Tensor, hidden_nJ: Tensor, places: slice, grad_hidden_nJ: Tensor, weighted_nI: Tensor) -> None:
        module.swiglu_gradients(
            grad_nI.dtype == torch.bfloat16,
            grad_nI.data_ptr(),
            hidden_nJ.data_ptr(),
            weights_N[places],
            grad_nI.shape[1],
            grads_N[places],
            grad_hidden_nJ.data_ptr(),
            weighted_nI.data_ptr(),
        )

    return write


@functools.cache
def _numba(name: str) -> Any:
    """A module of this directory; None without numba."""
    try:
        return importlib.import_module(f"{_MODULE}.{name}")
    except ImportError:
        return None


@functools.cache
def instructions_for(dtype: torch.dtype) -> str | None:
    """What this processor multiplies such numbers by, in kernels of ours: tiles, vectors or nothing."""
    try:
        from llvmlite.binding import get_host_cpu_features

        features = get_host_cpu_features()
        if dtype == torch.bfloat16:
            from gatelab.kernels.cpu._amx_tiles import has_amx

            return "_amx" if has_amx() else "_bfloat16" if features.get("avx512bf16") else None
    except (ImportError, RuntimeError):  # no numba, or no idea of this processor
        return None
    # On AMD's processors oneDNN was measured, and these kernels were not.
    return "_float" if dtype == torch.float32 and is_intel() and features.get("avx512f") else None
