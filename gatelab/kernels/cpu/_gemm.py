"""The matrix product of one expert's rows, by the library that is fastest at it."""

import functools
import platform
from pathlib import Path

import torch
from torch import Tensor

from gatelab.kernels.cpu._memory import Scratch


@functools.cache
def is_intel() -> bool:
    """Whether the processor is one of Intel's."""
    try:
        description = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        description = platform.processor()
    return "GenuineIntel" in description


_ONEDNN = platform.machine() in {"x86_64", "AMD64"} and torch.backends.mkldnn.is_available()
_FLOATS_ON_ONEDNN = _ONEDNN and not (torch.backends.mkl.is_available() and is_intel())
_BFLOAT16 = _ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def linear(
    x_nA: Tensor, weight_BA: Tensor, bias_B: Tensor | None = None, out: Tensor | Scratch | None = None
) -> Tensor:
    """x · weightᵀ + bias, in `out` or, where the library insists on memory of its own, in a new tensor."""
    # torch.mm hands float32 to MKL. On AMD's AVX-512 cores that is half as fast: 98 against 220 GFLOP/s; on Intel's it
    # is faster, 190 against 180, and writes where it is told. And a single row of bfloat16 torch.mm multiplies by
    # itself, at 60 % of the speed.
    is_single = x_nA.dtype == torch.bfloat16 and x_nA.shape[0] == 1
    if (x_nA.dtype == torch.float32 and _FLOATS_ON_ONEDNN) or (is_single and _BFLOAT16):
        if bias_B is not None:
            bias_B = bias_B.contiguous()  # its stride would be ignored
        return torch.ops.mkldnn._linear_pointwise.default(x_nA, weight_BA, bias_B, "none", [], "")
    if isinstance(out, Scratch):
        out = out.take(x_nA.shape[0], weight_BA.shape[0])
    if bias_B is None:
        return torch.mm(x_nA, weight_BA.t(), out=out)
    return torch.addmm(bias_B, x_nA, weight_BA.t(), out=out)


def needs_memory(dtype: torch.dtype) -> bool:
    """Whether `linear` writes into what it is given."""
    return not (dtype == torch.float32 and _FLOATS_ON_ONEDNN)


def padded(num_rows: int) -> int:
    """The number of rows to multiply when `num_rows` are wanted: one of sixteen sizes per power of two.

    oneDNN compiles a kernel for each shape, which takes as long as the product itself, and keeps a thousand of them:
    too few for every number of tokens that an expert may get. It is also up to a third slower at some odd sizes.
    """
    step = 1 << max(0, num_rows.bit_length() - 5)
    return -(-num_rows // step) * step


def gather(x_TD: Tensor, tokens_n: Tensor, scratch: Scratch) -> Tensor:
    """The rows `tokens_n` of x, followed by zeros up to the padded size P."""
    n = tokens_n.shape[0]
    x_PD = zero_padding(scratch.take(padded(n), x_TD.shape[1]), n)
    torch.index_select(x_TD, 0, tokens_n, out=x_PD[:n])
    return x_PD


def zero_padding(x_PA: Tensor, n: int) -> Tensor:
    """`x_PA` with zeros after its first n rows."""
    if n < x_PA.shape[0]:
        x_PA[n:].zero_()
    return x_PA
