"""SwiGLU experts on few rows, in numba (extra `fast`): every weight is read once, at the speed of memory.

With few rows a product is inner products of a row and a row of the weight. A library's matrix product first reorders
the weight, which is another pass over it.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, int64, njit, uint16, void

from gatelab.kernels.cpu._emit import compiled, inline

_REASSOCIATED = {"reassoc", "nsz", "contract"}  # sums side by side; NaN and infinity stay what they are


@inline
def _float(context: Any, number: Any) -> Any:
    """A number in float32; uint16 is bfloat16."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        if number == float32:
            return arguments[0]
        return b.bitcast(b.shl(b.zext(arguments[0], ir.IntType(32)), ir.IntType(32)(16)), ir.FloatType())

    return float32(number), emit


@njit(nogil=True, fastmath=_REASSOCIATED)
def _two_dots(rows, r, s, weight_A):
    first = second = np.float32(0)
    for a in range(weight_A.shape[0]):
        weight = _float(weight_A[a])
        first += rows[r, a] * weight
        second += rows[s, a] * weight
    return first, second


@njit(nogil=True)
def _swiglu(gate, up):
    return gate / (np.float32(1) + np.float32(math.exp(-gate))) * up


def _swiglu_expert(x_TD, tokens_n, up_JD, down_DI, weights_n, out_nD):
    n, (D, I) = len(tokens_n), down_DI.shape
    rows_nD, activated_nI = np.empty((n, D), np.float32), np.empty((n, I), np.float32)
    for r in range(n):
        for d in range(D):
            rows_nD[r, d] = _float(x_TD[tokens_n[r], d])
    for i in range(I):
        for r in range(0, n, 2):  # two rows, or the last one twice: a weight is read once, and is what takes the time
            s = min(r + 1, n - 1)
            gate, other_gate = _two_dots(rows_nD, r, s, up_JD[i])
            up, other_up = _two_dots(rows_nD, r, s, up_JD[I + i])
            activated_nI[r, i], activated_nI[s, i] = _swiglu(gate, up), _swiglu(other_gate, other_up)
    for d in range(D):
        for r in range(0, n, 2):
            s = min(r + 1, n - 1)
            y, other_y = _two_dots(activated_nI, r, s, down_DI[d])
            out_nD[r, d], out_nD[s, d] = y * weights_n[r], other_y * weights_n[s]


@functools.cache
def swiglu_expert(is_bfloat16: bool) -> Callable[..., None]:
    """out (n, D) = weights · down(silu(gate(x))·up(x)) for the rows `tokens` of x, compiled now or found on disk.

    Takes x (T, D), tokens (n,) int64, up (J, D), down (D, I), weights (n,), out (n, D), all contiguous: x, up and down
    float32 or, as uint16, bfloat16; weights and out float32.
    """
    number = uint16 if is_bfloat16 else float32
    matrix = number[:, ::1]
    signature = void(matrix, int64[::1], matrix, matrix, float32[::1], float32[:, ::1])
    return compiled(signature, _swiglu_expert)
