"""Rows of hidden states times rows of a gate's weight in bfloat16 by AMX, in numba (extra `fast`).

The tokens are read where they lie and the weight is packed for each call, or the other way round, whichever is less.
Sums are float32. A result does not depend on what else is computed beside it.
"""

from typing import Any

import torch
from numba import int64, njit, void
from numba.np.numpy_support import carray
from torch import Tensor

from gatelab.kernels.cpu._amx_tiles import COLUMNS, ROWS, configure, multiply_into, packed_at, release, rows_at
from gatelab.kernels.cpu._bfloat16_tiles import pack_rows
from gatelab.kernels.cpu._emit import LANES, compiled
from gatelab.kernels.cpu._regions import claim, longs_at, region

_PIECE = 4 * ROWS  # tokens, which stay in the second cache while the weight goes by
_WORTH_A_CORE = 1 << 23  # multiply-adds: below, waking another core takes longer


def scores(hidden_TD: Tensor, weight_ED: Tensor) -> Tensor:
    """x · Wᵀ (T, E) in float32, of contiguous matrices in bfloat16, D a multiple of 32."""
    if len(hidden_TD) < len(weight_ED):  # pack the smaller one: sums are the same to the bit
        return _products(weight_ED, hidden_TD).t().contiguous()
    return _products(hidden_TD, weight_ED)


def _products(x_MD: Tensor, y_ND: Tensor) -> Tensor:
    """x · yᵀ (M, N); y is packed."""
    (M, D), N = x_MD.shape, len(y_ND)
    whole, all_M, all_N = M // ROWS * ROWS, _up(M, ROWS), _up(N, COLUMNS)
    packed = torch.empty(all_N * D + 2 * ROWS * LANES, dtype=torch.bfloat16, device="cpu")
    _pack(y_ND.data_ptr(), N, D, packed.data_ptr(), packed[all_N * D :].data_ptr())
    rest = torch.empty(ROWS, D, dtype=torch.bfloat16, device="cpu") if whole < M else x_MD
    if whole < M:
        rest[: M - whole] = x_MD[whole:]
    products = torch.empty(all_M, all_N, dtype=torch.float32, device="cpu")
    addresses = (x_MD.data_ptr(), rest.data_ptr(), packed.data_ptr(), products.data_ptr())
    _scores(max(1, M * D * N // _WORTH_A_CORE), *addresses, whole, all_M, D, all_N)
    return products if products.shape == (M, N) else products[:M, :N].clone(memory_format=torch.contiguous_format)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _pack_weight(weight, E, D, packed, addresses):
    pack_rows(weight, 0, E, D, packed, addresses)


_pack = compiled(void(*[int64] * 5), _pack_weight)


@njit(nogil=True)
def _nothing(unit, job):
    pass


_multiply = multiply_into(_nothing, True)


def _scores_of_tiles(address: Any) -> None:
    _, x, rest, packed, out, whole, all_T, D, E = carray(longs_at(address), 9)
    configure()
    job = (0,)
    while True:
        start = claim(address) * _PIECE
        if start >= all_T:
            break
        for e in range(0, E, COLUMNS):
            for t in range(start, min(start + _PIECE, all_T), ROWS):
                rows = rows_at(x + 2 * D * t if t < whole else rest, 2 * D)
                to = out + 4 * (t * E + e)
                _multiply(packed_at(packed + 2 * D * e, D), rows, ROWS, D, to, 4 * E, job)
    release()


_scores = region(_scores_of_tiles, "_emit", "_bfloat16_tiles", "_amx_tiles", "_amx_scores")
