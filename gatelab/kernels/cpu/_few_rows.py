"""SwiGLU experts on few rows, in numba (extra `fast`): every weight is read once, at the speed of memory.

With few rows a product is inner products of a row and a row of the weight. A library's matrix product first reorders
the weight, which is another pass over it. The cores share the weights' rows, not the experts: with one token there may
be fewer of these than cores.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import float32, int64, njit
from numba.np.numpy_support import carray
from torch import Tensor

from gatelab.kernels.cpu._bfloat16_tiles import prefetch
from gatelab.kernels.cpu._emit import compiled, inline
from gatelab.kernels.cpu._regions import claim, floats_at, longs_at, region, shorts_at

_PIECE = 1 << 18  # bytes of a weight
_WORTH_A_CORE = 1 << 18  # weights: below, waking another core takes longer
_SOURCES = ("_emit", "_bfloat16_tiles", "_few_rows")
_REASSOCIATED = {"reassoc", "nsz", "contract"}  # sums side by side; NaN and infinity stay what they are


def experts(
    x_TD: Tensor, token_index: Tensor, expert_offsets: Tensor, weights: Tensor, up_proj: Tensor, down_proj: Tensor
) -> Tensor | None:
    """y (T, D) = Σ weights · down(silu(gate(x))·up(x)), summed in ascending order of expert in float32.

    Contiguous; x and the projections float32 or bfloat16, weights float32. None where a token does not exist, or where
    the experts that are used have more than four rows each.
    """
    (T, D), (E, _, I), is_bfloat16 = x_TD.shape, down_proj.shape, x_TD.dtype == torch.bfloat16
    used = torch.empty(E, dtype=torch.int64, device="cpu")
    M, assignments = len(token_index), (token_index.data_ptr(), expert_offsets.data_ptr())
    U = _used(*assignments, M, T, E, used.data_ptr())
    if U < 0:
        return None
    y_TD, activated_MI = torch.empty_like(x_TD), torch.empty(M, I, dtype=torch.float32, device="cpu")
    sums_TD = torch.empty(T, D, dtype=torch.float32, device="cpu") if is_bfloat16 else y_TD
    tensors = (x_TD, weights, up_proj, down_proj, activated_MI, sums_TD, y_TD, used)
    numbers = (*assignments, *(tensor.data_ptr() for tensor in tensors), U, T, D, I)
    up, down = _halves(is_bfloat16)
    up(1 + 2 * U * D * I // _WORTH_A_CORE, *numbers)
    down(1 + U * D * I // _WORTH_A_CORE, *numbers)
    return y_TD


def _used_experts(token_index, expert_offsets, M, T, E, used) -> Any:
    """Write which experts have rows. Returns how many, or −1: the experts are not for this kernel."""
    tokens, offsets = carray(longs_at(token_index), M), carray(longs_at(expert_offsets), E + 1)
    used_U, U = carray(longs_at(used), E), 0
    if offsets[0] < 0 or offsets[E] > M:
        return -1
    for e in range(E):
        if offsets[e + 1] < offsets[e]:
            return -1
        if offsets[e + 1] > offsets[e]:
            used_U[U] = e
            U += 1
    for n in range(offsets[0], offsets[E]):
        if not 0 <= tokens[n] < T:
            return -1
    return U if offsets[E] - offsets[0] <= 4 * U else -1


_used: Any = compiled(int64(*[int64] * 6), _used_experts)


@inline
def _float(context: Any, number: Any) -> Any:
    """A number in float32; uint16 is bfloat16."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        if number == float32:
            return arguments[0]
        return b.bitcast(b.shl(b.zext(arguments[0], ir.IntType(32)), ir.IntType(32)(16)), ir.FloatType())

    return float32(number), emit


@njit(nogil=True, fastmath=_REASSOCIATED)
def _dots(row_A, weight_A, other_weight_A):
    """Of one row with two rows of weights."""
    one = other = np.float32(0)
    for a in range(weight_A.shape[0]):
        x = _float(row_A[a])
        one += x * _float(weight_A[a])
        other += x * _float(other_weight_A[a])
    return one, other


@njit(nogil=True, fastmath=_REASSOCIATED)
def _two_dots(row_A, other_row_A, weight_A, other_weight_A):
    """Of two rows with the same two rows of weights, which are read once."""
    one = other = third = fourth = np.float32(0)
    for a in range(weight_A.shape[0]):
        x, y, w, v = _float(row_A[a]), _float(other_row_A[a]), _float(weight_A[a]), _float(other_weight_A[a])
        one += x * w
        other += x * v
        third += y * w
        fourth += y * v
    return one, other, third, fourth


@njit(nogil=True)
def _ask_for(address, size):
    """A row of a weight may be a page of memory, where the processor's own looking ahead ends."""
    for line in range(0, size, 64):
        prefetch(address + line)


@njit(nogil=True)
def _swiglu(gate, up):
    return gate / (np.float32(1) + np.float32(math.exp(-gate))) * up


@njit(nogil=True)
def _rounded(number):
    """The nearest bfloat16, to even; NaN stays NaN."""
    bits = np.int64(np.float32(number).view(np.int32)) & 0xFFFFFFFF
    if number != number:
        return np.uint16(0x7FC0)
    return np.uint16((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)


@functools.cache
def _halves(is_bfloat16: bool) -> tuple[Callable[..., None], Callable[..., None]]:
    """What fills `activated`, and what fills y from it."""
    matrix_at, width = (shorts_at, 2) if is_bfloat16 else (floats_at, 4)

    def up(address):
        _, token_index, offsets, x, _, up_proj, _, activated, _, _, used, U, T, D, I = carray(longs_at(address), 15)
        tokens, offset_E, used_U = (
            carray(longs_at(token_index), 1),
            carray(longs_at(offsets), 1),
            carray(longs_at(used), U),
        )
        x_TD, activated_MI = carray(matrix_at(x), (T, D)), carray(floats_at(activated), (1, I))
        rows = max(1, _PIECE // (width * D))
        pieces = -(-I // rows)
        while True:
            piece = claim(address)
            if piece >= U * pieces:
                return
            e, first = used_U[piece // pieces], piece % pieces * rows
            start, stop = offset_E[e], offset_E[e + 1]
            up_JD = carray(matrix_at(up_proj + width * 2 * I * D * e), (2 * I, D))
            for i in range(first, min(first + rows, I)):
                following = up_proj + width * D * (2 * I * e + i + 1)
                _ask_for(following, width * D)
                _ask_for(following + width * D * I, width * D)
                for n in range(start, stop - 1, 2):
                    x_D, other_D = x_TD[tokens[n]], x_TD[tokens[n + 1]]
                    gate, up, other_gate, other_up = _two_dots(x_D, other_D, up_JD[i], up_JD[I + i])
                    activated_MI[n, i], activated_MI[n + 1, i] = _swiglu(gate, up), _swiglu(other_gate, other_up)
                if (stop - start) % 2:
                    gate, up = _dots(x_TD[tokens[stop - 1]], up_JD[i], up_JD[I + i])
                    activated_MI[stop - 1, i] = _swiglu(gate, up)

    def down(address):
        _, token_index, offsets, _, weights, _, down_proj, activated, sums, y, used, U, T, D, I = carray(
            longs_at(address), 15
        )
        tokens, offset_E, used_U = (
            carray(longs_at(token_index), 1),
            carray(longs_at(offsets), 1),
            carray(longs_at(used), U),
        )
        weight_M, activated_MI = carray(floats_at(weights), 1), carray(floats_at(activated), (1, I))
        sums_TD, y_TD = carray(floats_at(sums), (T, D)), carray(matrix_at(y), (T, D))
        rows = max(2, _PIECE // (width * I))
        while True:
            first = claim(address) * rows
            if first >= D:
                return
            last = min(first + rows, D)
            for t in range(T):
                for d in range(first, last):
                    sums_TD[t, d] = 0
            for u in range(U):
                e = used_U[u]
                start, stop = offset_E[e], offset_E[e + 1]
                down_DI = carray(matrix_at(down_proj + width * D * I * e), (D, I))
                for d in range(first, last, 2):
                    _ask_for(down_proj + width * I * (D * e + d + 2), 2 * width * I)
                    f = min(d + 1, last - 1)
                    for n in range(start, stop - 1, 2):
                        t, s = tokens[n], tokens[n + 1]
                        dots = _two_dots(activated_MI[n], activated_MI[n + 1], down_DI[d], down_DI[f])
                        sums_TD[t, d] += weight_M[n] * dots[0]
                        sums_TD[s, d] += weight_M[n + 1] * dots[2]
                        if f > d:
                            sums_TD[t, f] += weight_M[n] * dots[1]
                            sums_TD[s, f] += weight_M[n + 1] * dots[3]
                    if (stop - start) % 2:
                        t = tokens[stop - 1]
                        one, other = _dots(activated_MI[stop - 1], down_DI[d], down_DI[f])
                        sums_TD[t, d] += weight_M[stop - 1] * one
                        if f > d:
                            sums_TD[t, f] += weight_M[stop - 1] * other
            if is_bfloat16:
                for t in range(T):
                    for d in range(first, last):
                        y_TD[t, d] = _rounded(sums_TD[t, d])

    for function in (up, down):
        function.__name__ += "_of_bfloat16" if is_bfloat16 else "_of_floats"
    return region(up, *_SOURCES), region(down, *_SOURCES)
