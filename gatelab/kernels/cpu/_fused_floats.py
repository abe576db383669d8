"""Which experts in float32 the numba kernels compute, forward and backward, and with what memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gatelab.kernels.cpu import _fused
from gatelab.kernels.cpu._cores import balance
from gatelab.kernels.cpu._gemm import is_intel
from gatelab.kernels.cpu._memory import Scratches, empty, entries

if TYPE_CHECKING:
    from gatelab.kernels.cpu._expert_forward import Arguments, Piece


def fused_floats(arguments: Arguments, pieces: list[Piece], hidden: Tensor | None) -> _fused.Work | None:
    """As `_fused.fused`, for float32."""
    sizes = [stop - start for _, start, stop in pieces]
    # a kernel keeps to its core, torch's operations share one large task
    if not balance(sizes, arguments.multiply_adds) or (module := _module("_float_blocks", arguments, pieces)) is None:
        return None
    _, D, I = arguments.down_proj.shape
    rows_ND = empty((max(stop for _, _, stop in pieces), D), torch.float32)
    scratches = _scratches(module, arguments, pieces)
    x_TD, tokens, weights = arguments.x_TD.contiguous(), arguments.token_index, arguments.weights.float()
    by_row = [entries(t) for t in (tokens.contiguous(), weights.contiguous(), hidden, rows_ND)]
    by_expert = [entries(arguments.up_proj), entries(arguments.down_proj)]

    def work(piece: Piece) -> None:
        e, start, stop = piece
        tokens_n, weights_n, hidden_nJ, rows_nD = (at(start) for at in by_row)
        up_JD, down_DI = (at(e) for at in by_expert)
        with scratches.lend() as scratch:
            place = scratch.take(1, 1).data_ptr()
            module.float_swiglu_expert(
                x_TD.data_ptr(), tokens_n, stop - start, up_JD, down_DI, weights_n, D, I, hidden_nJ, rows_nD, place
            )

    return work, rows_ND


def fused_floats_backward(
    grad_TD: Tensor,
    hidden: Tensor,
    arguments: Arguments,
    pieces: list[list[Piece]],
    grad_rows_ND: Tensor | None,
    grad_weights: Tensor | None,
    grad_up_EJD: Tensor | None,
    grad_down_EDI: Tensor | None,
) -> Callable[[int], None] | None:
    """What writes the gradients of an expert, whose blocks are its `pieces`, and of its rows; None: see `fused`."""
    blocks = [piece for own in pieces for piece in own]
    sizes = [own[-1].stop - own[0].start if own else 0 for own in pieces]
    if not balance(sizes, arguments.multiply_adds):
        return None
    if (module := _module("_float_gradients", arguments, blocks)) is None:
        return None
    _, D, I = arguments.down_proj.shape
    scratches = _scratches(module, arguments, blocks)
    x_TD, grad_TD = arguments.x_TD.contiguous(), grad_TD.contiguous()
    weights = arguments.weights.detach().contiguous().numpy()
    grads = np.empty_like(weights) if grad_weights is None else grad_weights.numpy()
    by_row = [entries(t) for t in (arguments.token_index.contiguous(), hidden.contiguous(), grad_rows_ND)]
    by_expert = [entries(t) for t in (arguments.up_proj, arguments.down_proj, grad_up_EJD, grad_down_EDI)]

    def work(e: int) -> None:
        if not pieces[e] and grad_up_EJD is not None and grad_down_EDI is not None:
            grad_up_EJD[e].zero_()
            grad_down_EDI[e].zero_()
        up_JD, down_DI, grad_up_JD, grad_down_DI = (at(e) for at in by_expert)
        for i, (_, start, stop) in enumerate(pieces[e]):
            tokens_n, hidden_nJ, grad_rows_nD = (at(start) for at in by_row)
            inputs = (x_TD.data_ptr(), grad_TD.data_ptr(), tokens_n, stop - start, up_JD, down_DI)
            with scratches.lend() as scratch:
                module.float_swiglu_expert_gradients(
                    *inputs,
                    weights[start:stop],
                    D,
                    I,
                    hidden_nJ,
                    grad_rows_nD,
                    grads[start:stop],
                    grad_up_JD,
                    grad_down_DI,
                    i == 0,
                    scratch.take(1, 1).data_ptr(),
                )

    return work


def _module(name: str, arguments: Arguments, pieces: list[Piece]) -> Any:
    """The kernels of that name, if they fit these experts and this processor."""
    _, D, I = arguments.down_proj.shape
    dtypes = {arguments.x_TD.dtype, arguments.weights.dtype}
    fits = dtypes == {torch.float32} and D % 32 == I % 32 == 0 and _has_fast_vectors()
    return _fused._numba(name) if fits and _fused.is_plain(arguments, pieces) else None


def _scratches(module: Any, arguments: Arguments, pieces: list[Piece]) -> Scratches:
    _, D, I = arguments.down_proj.shape
    most_rows = max(stop - start for _, start, stop in pieces)
    return Scratches(1, (module.scratch_elements(most_rows, D, I),), torch.float32)


@functools.cache
def _has_fast_vectors() -> bool:
    """On AMD's processors oneDNN was measured, and these kernels were not."""
    return is_intel() and torch.backends.cpu.get_cpu_capability() == "AVX512"
