"""The matrix product of one expert's rows, by the library that is fastest at it."""

import platform

import torch
from torch import Tensor

_X86 = platform.machine() in {"x86_64", "AMD64"}


def linear(x_nA: Tensor, weight_BA: Tensor, bias_B: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias."""
    if x_nA.dtype == torch.float32 and _X86 and torch.backends.mkldnn.is_available():
        # torch.mm hands float32 to MKL. On AMD's AVX-512 cores that is half as fast: 98 against 220 GFLOP/s.
        if bias_B is not None:
            bias_B = bias_B.contiguous()  # its stride would be ignored
        return torch.ops.mkldnn._linear_pointwise(x_nA, weight_BA, bias_B, "none", [], "")
    if bias_B is None:
        return torch.mm(x_nA, weight_BA.t())
    return torch.addmm(bias_B, x_nA, weight_BA.t())


def padded(num_rows: int) -> int:
    """The number of rows to multiply when `num_rows` are wanted: one of sixteen sizes per power of two.

    oneDNN compiles a kernel for each shape, which takes as long as the product itself, and keeps a thousand of them:
    too few for every number of tokens that an expert may get. It is also up to a third slower at some odd sizes.
    """
    step = 1 << max(0, num_rows.bit_length() - 5)
    return -(-num_rows // step) * step


def gather(x_TD: Tensor, tokens_n: Tensor) -> Tensor:
    """The rows `tokens_n` of x, followed by zeros up to the padded size P."""
    n = tokens_n.shape[0]
    x_PD = zero_padding(x_TD.new_empty(padded(n), x_TD.shape[1]), n)
    torch.index_select(x_TD, 0, tokens_n, out=x_PD[:n])
    return x_PD


def zero_padding(x_PA: Tensor, n: int) -> Tensor:
    """`x_PA` with zeros after its first n rows."""
    if n < x_PA.shape[0]:
        x_PA[n:].zero_()
    return x_PA
