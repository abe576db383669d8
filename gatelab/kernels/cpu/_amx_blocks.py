"""SwiGLU experts in bfloat16 by AMX, in numba (extra `fast`): what `_bfloat16_blocks` does, the other way round.

The products take so little time here that all else matters. The weights are read where they lie, as the first factor;
the tokens are packed once and stand in columns, so that what follows a product is done on 16 tokens at a time.
"""

from typing import Any

from llvmlite import ir
from numba import int64, njit, void

from gatelab.kernels.cpu._amx_tiles import COLUMNS, ROWS, configure, multiply, packed_at, release, rows_at
from gatelab.kernels.cpu._bfloat16_tiles import pack_rows, prefetch_rows, rounded, transposed
from gatelab.kernels.cpu._emit import (
    FLOAT,
    FLOATS,
    INTS,
    LANES,
    SHORTS,
    compiled,
    constant,
    fence,
    inline,
    load,
    sigmoid,
    store,
    stream,
)

_TERMS = 6  # of the exponential: to 2⁻¹⁸, ten bits more than are kept
_ROW_BYTES = 4 * COLUMNS  # of results
_SIZE = ROWS * _ROW_BYTES


def _pairs(b: Any, upper: Any, lower: Any) -> Any:
    """In bfloat16, two floats of a column in one integer."""
    low, high = (b.zext(rounded(b, floats), INTS) for floats in (upper, lower))
    return b.or_(low, b.shl(high, constant(INTS, 16)))


@inline
def _store_swiglu(context: Any, results: Any, target: Any) -> Any:
    """silu(g)·u of two rows g and the rows 16 below them, for 16 tokens, in pairs."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        results, target = arguments
        activated = []
        for r in range(2):
            gate, up = (load(b, FLOATS, results, _ROW_BYTES * (r + below)) for below in (0, LANES))
            activated.append(b.fmul(b.fmul(gate, sigmoid(b, gate, _TERMS)), up))
        store(b, _pairs(b, *activated), target)

    return void(int64, int64), emit


@inline
def _turn_hidden(context: Any, results: Any, target: Any, length: Any, distance: Any) -> Any:
    """32 rows for 16 tokens: 16 numbers to each token's row of `length` bytes, and 16 at some distance."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        results, target, length, distance = arguments
        rows = [load(b, FLOATS, results, _ROW_BYTES * r) for r in range(ROWS)]
        for row in transposed(b, [_pairs(b, *rows[r : r + 2]) for r in range(0, ROWS, 2)]):
            halves = b.bitcast(row, ir.VectorType(ir.IntType(256), 2))
            for place, half in ((target, 0), (b.add(target, distance), 1)):
                store(b, b.bitcast(b.extract_element(halves, ir.IntType(32)(half)), SHORTS), place)
            target = b.add(target, length)

    return void(*[int64] * 4), emit


@inline
def _turn_scaled(context: Any, results: Any, weights: Any, target: Any, length: Any) -> Any:
    """32 rows for 16 tokens times the tokens' weights: 32 numbers to each token's row of `length` bytes."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        results, weights, target, length = arguments
        scale = load(b, FLOATS, weights)
        rows = [b.fmul(load(b, FLOATS, results, _ROW_BYTES * r), scale) for r in range(ROWS)]
        for row in transposed(b, [_pairs(b, *rows[r : r + 2]) for r in range(0, ROWS, 2)]):
            stream(b, row, target)
            target = b.add(target, length)

    return void(*[int64] * 4), emit


@inline
def _copy_half(context: Any, source: Any, target: Any) -> Any:
    """32 bytes."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        store(b, load(b, SHORTS, arguments[0]), arguments[1])

    return void(int64, int64), emit


@inline
def _copy_float(context: Any, source: Any, target: Any) -> Any:
    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        store(b, load(b, FLOAT, arguments[0]), arguments[1])

    return void(int64, int64), emit


@njit(nogil=True, inline="always")
def _finish_up(unit, job):
    """The pair `unit` of gates and of what they open, of all columns; the last one keeps both, where they are kept."""
    units, results, activated, I, hidden, count, spare = job
    for c in range(0, count, LANES):
        _store_swiglu(results + 2 * _ROW_BYTES * unit + 4 * c, activated + 2 * I * c + 64 * unit)
        if hidden and unit == units - 1:
            if count - c >= LANES:
                _turn_hidden(results + 4 * c, hidden + 4 * I * c, 4 * I, 2 * I)
            else:
                _turn_hidden(results + 4 * c, spare, 64, 32)
                for t in range(count - c):
                    _copy_half(spare + 64 * t, hidden + 4 * I * (c + t))
                    _copy_half(spare + 64 * t + 32, hidden + 4 * I * (c + t) + 2 * I)


@njit(nogil=True, inline="always")
def _finish_down(unit, job):
    """16 columns."""
    _, results, weights, out, D, count, spare = job
    c = LANES * unit
    if count - c >= LANES:
        _turn_scaled(results + 4 * c, weights + 4 * c, out + 2 * D * c, 2 * D)
        return
    _turn_scaled(results + 4 * c, weights + 4 * c, spare, 64)
    for t in range(count - c):
        for half in range(0, 64, 32):
            _copy_half(spare + 64 * t + half, out + 2 * D * (c + t) + half)


_multiply_up, _multiply_down = multiply(_finish_up, False), multiply(_finish_down, False)


@njit(nogil=True)
def _up(columns, n, weight, D, I, hidden, activated, results, spare):
    job = 0, results, activated, I, hidden, 0, spare
    for i in range(0, I, LANES):
        gates, ups = weight + 2 * D * i, weight + 2 * D * (I + i)
        kept = gates, ups, 2 * D, 64
        for start in range(0, n, COLUMNS):
            count = min(COLUMNS, n - start)
            for rows in (gates, ups):
                prefetch_rows(rows + 2 * D * LANES, 2 * D * LANES, start, COLUMNS, n)
            _multiply_up(kept, packed_at(columns + 2 * D * start, D), count, D, results, job)
            to_keep = hidden + 4 * I * start + 2 * i if hidden else 0
            job = LANES // 2, results, activated + 2 * I * start + 32 * i, I, to_keep, count, spare
            results ^= _SIZE
    for unit in range(job[0]):
        _finish_up(unit, job)


@njit(nogil=True)
def _down(columns, n, weight, D, I, weights, out, results, spare):
    job = 0, results, weights, out, D, 0, spare
    for d in range(0, D, ROWS):
        rows = weight + 2 * I * d
        for start in range(0, n, COLUMNS):
            count = min(COLUMNS, n - start)
            prefetch_rows(rows + 2 * I * ROWS, 2 * I * ROWS, start, COLUMNS, n)
            _multiply_down(rows_at(rows, 2 * I), packed_at(columns + 2 * I * start, I), count, I, results, job)
            job = (count + LANES - 1) // LANES, results, weights + 4 * start, out + 2 * (D * start + d), D, count, spare
            results ^= _SIZE
    for unit in range(job[0]):
        _finish_down(unit, job)


def _swiglu_expert(x, tokens, n, up_proj, down_proj, weights, D, I, hidden, out, scratch):
    """out (n, D) = weights · down(silu(gate(x))·up(x)) for the rows `tokens` of x; keeps `hidden` (n, 2·I) if not 0."""
    all_n = -(-n // LANES) * LANES
    results = -(-scratch // (2 * _SIZE)) * 2 * _SIZE  # two that differ in one bit
    spare = results + 2 * _SIZE
    own_weights = spare + 64 * LANES  # with room for 16 at a time
    columns = own_weights + 4 * all_n
    activated = columns + 2 * all_n * D
    configure()
    for t in range(n):
        _copy_float(weights + 4 * t, own_weights + 4 * t)
    pack_rows(x, tokens, n, D, columns, spare)
    _up(columns, n, up_proj, D, I, hidden, activated, results, spare)
    _down(activated, n, down_proj, D, I, own_weights, out, results, spare)
    fence()
    release()


swiglu_expert = compiled(void(*[int64] * 11), _swiglu_expert)


def scratch_elements(n: int, D: int, I: int) -> int:
    """Of bfloat16, that `swiglu_expert` needs for n rows."""
    return (n + LANES) * (D + I + 2) + 2 * _SIZE + 32 * LANES
