"""Which experts run in the fused kernel of `_bfloat16_blocks`, and their rows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gatelab.kernels.cpu._memory import Scratches

if TYPE_CHECKING:
    from gatelab.kernels.cpu._expert_forward import Arguments, Piece


def fused_expert(
    arguments: Arguments, hidden: Tensor | None, rows_ND: Tensor, most_rows: int
) -> Callable[[Piece], None] | None:
    """What writes a piece's weighted rows, and `hidden` where one is given; None if the kernel does not fit.

    It is made for SwiGLU without biases, weights on the output, and sizes that are multiples of 32.
    """
    _, D, I = arguments.down_proj.shape
    parameters = arguments.up_proj, arguments.down_proj
    fits = (
        arguments.x_TD.dtype == torch.bfloat16
        and arguments.activation == "swiglu"
        and not arguments.weights_on_input
        and arguments.up_bias is arguments.down_bias is None
        and all(p.is_contiguous() for p in parameters)
        and D % 32 == I % 32 == 0
    )
    if not fits or (kernels := _kernels()) is None:
        return None
    scratches = Scratches(1, (kernels.scratch_elements(most_rows, D, I),), torch.bfloat16)
    x_TD, tokens = arguments.x_TD.contiguous(), arguments.token_index.contiguous()
    weights = arguments.weights.float().contiguous()

    def work(piece: Piece) -> None:
        e, start, stop = piece
        with scratches.lend() as scratch:
            kernels.swiglu_expert(
                x_TD.data_ptr(),
                tokens[start:].data_ptr(),
                stop - start,
                arguments.up_proj[e].data_ptr(),
                arguments.down_proj[e].data_ptr(),
                weights[start:].data_ptr(),
                D,
                I,
                0 if hidden is None else hidden[start:].data_ptr(),
                rows_ND[start:].data_ptr(),
                scratch.take(1, 1).data_ptr(),
            )

    return work


@functools.cache
def _kernels() -> Any:
    """The module, where numba is installed and this processor is what it is made for: with AMX oneDNN is faster."""
    try:
        from llvmlite.binding import get_host_cpu_features

        features = get_host_cpu_features()
        if features.get("avx512bf16") and not features.get("amx-bf16"):
            from gatelab.kernels.cpu import _bfloat16_blocks

            return _bfloat16_blocks
    except (ImportError, RuntimeError):  # not installed, or no such processor is known here
        pass
    return None
