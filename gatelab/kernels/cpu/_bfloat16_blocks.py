"""SwiGLU experts in bfloat16, in numba (extra `fast`), for processors with AVX512_BF16 and without AMX.

oneDNN reorders a whole weight matrix before every product, a tenth of its time with the few rows of one expert, and
every step between two products is another pass over the rows. Here 32 rows of a weight are reordered at a time and
meet all rows of the block; see `_bfloat16_tiles`.
"""

from typing import Any

from numba import int64, njit, void

from gatelab.kernels.cpu._bfloat16_tiles import (
    PANEL,
    ROWS,
    dot_products,
    pack_rows,
    prefetch_rows,
    rounded,
    rounded_pair,
    tile_row,
)
from gatelab.kernels.cpu._emit import FLOAT, FLOATS, LANES, compiled, inline, load, sigmoid, splat, store


@inline
def store_half(context: Any, results: Any, target: Any) -> Any:
    """16 results in bfloat16."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        store(b, rounded(b, load(b, FLOATS, arguments[0])), arguments[1])

    return void(int64, int64), emit


@inline
def store_scaled(context: Any, results: Any, weight: Any, target: Any) -> Any:
    """32 results times the float32 at `weight`."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        results, weight, target = arguments
        scale = splat(b, load(b, FLOAT, weight))
        halves = [b.fmul(load(b, FLOATS, results, offset), scale) for offset in (0, 64)]
        store(b, rounded_pair(b, *halves), target)

    return void(int64, int64, int64), emit


@inline
def store_swiglu(context: Any, results: Any, target: Any) -> Any:
    """silu(g)·u of 16 results g and the 16 behind them."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        results, target = arguments
        gate, up = load(b, FLOATS, results), load(b, FLOATS, results, 64)
        store(b, rounded(b, b.fmul(b.fmul(gate, sigmoid(b, gate)), up)), target)

    return void(int64, int64), emit


@njit(nogil=True)
def _up(packed, n, weight, D, I, hidden, activated, panel, results, addresses):
    for i in range(0, I, LANES):
        pack_rows(weight + 2 * D * i, 0, LANES, D, panel, addresses)
        pack_rows(weight + 2 * D * (I + i), 0, LANES, D, panel + 32 * D, addresses)
        for start in range(0, n, ROWS):
            for next_rows in (i + LANES, I + i + LANES):
                prefetch_rows(weight + 2 * D * next_rows, 2 * D * LANES, start, ROWS, n)
            dot_products(tile_row(packed, start, D // 2), panel, panel + 32 * D, D // 2, results)
            for r in range(min(ROWS, n - start)):
                result, row = results + 128 * r, start + r
                if hidden:
                    store_half(result, hidden + 2 * (2 * I * row + i))
                    store_half(result + 64, hidden + 2 * (2 * I * row + I + i))
                store_swiglu(result, activated + 2 * (I * row + i))


@njit(nogil=True)
def _down(packed, n, weight, D, I, weights, out, panel, results, addresses):
    for d in range(0, D, PANEL):
        pack_rows(weight + 2 * I * d, 0, PANEL, I, panel, addresses)
        for start in range(0, n, ROWS):
            prefetch_rows(weight + 2 * I * (d + PANEL), 2 * I * PANEL, start, ROWS, n)
            dot_products(tile_row(packed, start, I // 2), panel, panel + 32 * I, I // 2, results)
            for r in range(min(ROWS, n - start)):
                store_scaled(results + 128 * r, weights + 4 * (start + r), out + 2 * (D * (start + r) + d))


def _swiglu_expert(x, tokens, n, up_proj, down_proj, weights, D, I, hidden, out, scratch):
    """out (n, D) = weights · down(silu(gate(x))·up(x)) for the rows `tokens` of x; keeps `hidden` (n, 2·I) if not 0."""
    packed_n = -(-n // LANES) * LANES
    activated = scratch
    packed = activated + 2 * packed_n * I
    panel = packed + 2 * packed_n * max(D, I)
    results = panel + 2 * PANEL * max(D, I)
    addresses = results + 4 * ROWS * PANEL
    pack_rows(x, tokens, n, D, packed, addresses)
    _up(packed, n, up_proj, D, I, hidden, activated, panel, results, addresses)
    pack_rows(activated, 0, n, I, packed, addresses)
    _down(packed, n, down_proj, D, I, weights, out, panel, results, addresses)


swiglu_expert = compiled(void(*[int64] * 11), _swiglu_expert)


def scratch_elements(n: int, D: int, I: int) -> int:
    """Of bfloat16, that `swiglu_expert` needs for n rows."""
    return (n + LANES) * (I + max(D, I)) + PANEL * max(D, I) + 2 * ROWS * PANEL + 4 * LANES
