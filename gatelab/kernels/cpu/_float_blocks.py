"""SwiGLU experts in float32, in numba (extra `fast`), for processors with AVX-512.

A library's product packs both factors anew in memory of its own, and every step between two products is another pass
over the rows. Here the gather packs, 32 rows of a weight at a time meet all rows of the block, and what follows a
product is done with its results; see `_float_tiles`.
"""

from typing import Any

from numba import int64, njit, void

from gatelab.kernels.cpu._emit import (
    FLOAT,
    FLOATS,
    LANES,
    LONG,
    compiled,
    fence,
    inline,
    load,
    sigmoid,
    splat,
    store,
    stream,
)
from gatelab.kernels.cpu._float_tiles import (
    PANEL,
    ROWS,
    dot_products,
    expect,
    pack_panel,
    pack_rows,
    step_of,
    stream_half,
    tile_of_rows,
)


@inline
def _store_scaled(context: Any, results: Any, weight: Any, target: Any) -> Any:
    """32 results times the float32 at `weight`."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        results, weight, target = arguments
        scale = splat(b, load(b, FLOAT, weight))
        for offset in (0, 64):
            stream(b, b.fmul(load(b, FLOATS, results, offset), scale), b.add(target, LONG(offset)))

    return void(int64, int64, int64), emit


@inline
def _store_swiglu(context: Any, results: Any, target: Any) -> Any:
    """silu(g)·u of 16 results g and the 16 behind them."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        results, target = arguments
        gate, up = load(b, FLOATS, results), load(b, FLOATS, results, 64)
        store(b, b.fmul(b.fmul(gate, sigmoid(b, gate)), up), target)

    return void(int64, int64), emit


@njit(nogil=True)
def _up(packed, n, weight, D, I, hidden, activated, panel, results, addresses):
    for i in range(0, I, LANES):
        pack_panel(weight + 4 * D * i, weight + 4 * D * (I + i), D, D, panel, addresses)
        for start in range(0, n, ROWS):
            rows = min(ROWS, n - start)
            expect(activated + 4 * (I * start + i), I, rows, 64)
            piece = D * start // n  # of the next rows: half of them of the gate, the others behind I rows more
            ahead = weight + 4 * D * (i + LANES) + 128 * piece + (4 * D * (I - LANES) if 2 * piece >= D else 0)
            dot_products(rows, tile_of_rows(packed, start, D), panel, D, results, ahead, 128, step_of(D, rows, n, D))
            for r in range(rows):
                result, row = results + 128 * r, start + r
                if hidden:
                    stream_half(result, hidden + 4 * (2 * I * row + i))
                    stream_half(result + 64, hidden + 4 * (2 * I * row + I + i))
                _store_swiglu(result, activated + 4 * (I * row + i))


@njit(nogil=True)
def _down(packed, n, weight, D, I, weights, out, panel, results, addresses):
    for d in range(0, D, PANEL):
        pack_panel(weight + 4 * I * d, weight + 4 * I * (d + LANES), I, I, panel, addresses)
        for start in range(0, n, ROWS):
            rows = min(ROWS, n - start)
            ahead = weight + 4 * I * (d + PANEL) + 128 * (I * start // n)
            dot_products(rows, tile_of_rows(packed, start, I), panel, I, results, ahead, 128, step_of(I, rows, n, I))
            for r in range(rows):
                _store_scaled(results + 128 * r, weights + 4 * (start + r), out + 4 * (D * (start + r) + d))


def _swiglu_expert(x, tokens, n, up_proj, down_proj, weights, D, I, hidden, out, scratch):
    """out (n, D) = weights · down(silu(gate(x))·up(x)) for the rows `tokens` of x; keeps `hidden` (n, 2·I) if not 0."""
    activated = scratch
    packed = activated + 4 * n * I
    panel = packed + 64 * -(-n // ROWS) * max(D, I)
    results = panel + 4 * PANEL * max(D, I)
    addresses = results + 4 * ROWS * PANEL
    pack_rows(x, tokens, n, D, D, packed, addresses)
    _up(packed, n, up_proj, D, I, hidden, activated, panel, results, addresses)
    pack_rows(activated, 0, n, I, I, packed, addresses)
    _down(packed, n, down_proj, D, I, weights, out, panel, results, addresses)
    fence()


swiglu_expert = compiled(void(*[int64] * 11), _swiglu_expert)


def scratch_elements(n: int, D: int, I: int) -> int:
    """Of float32, that `swiglu_expert` needs for n rows."""
    return n * I + (LANES * -(-n // ROWS) + PANEL) * max(D, I) + ROWS * PANEL + 2 * LANES
