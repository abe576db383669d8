"""The backward pass of `_amx_blocks`: its four products by AMX, and what lies between them, in numba (extra `fast`).

The gradients of activated rows and of tokens are products of rows, read as they lie, and of packed columns of a weight.
A weight's gradient is a sum over rows, in both factors: columns are packed, and turned where they are the first factor.
"""

from typing import Any

from numba import int64, njit, void

from gatelab.kernels.cpu._amx_tiles import ROWS, configure, copy_row, multiply, packed_at, release, rows_at, turn
from gatelab.kernels.cpu._bfloat16_gradients import add_row, keep_row, store_gradients, zero, zero_float
from gatelab.kernels.cpu._bfloat16_tiles import PANEL, pack_columns, prefetch, prefetch_columns, read, rounded_pair
from gatelab.kernels.cpu._emit import FLOATS, compiled, fence, inline, load, stream

_ROW_BYTES = 4 * PANEL  # of results
_SIZE = ROWS * _ROW_BYTES
MOST_COLUMNS = 1024  # of x: with 2048 what an expert needs leaves the second cache, and torch's operations are faster
_PADDING = 32  # of our own rows: a power of two apart, they would share a few places of the caches


@inline
def _stream_row(context: Any, results: Any, target: Any) -> Any:
    """32 results in bfloat16."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        results, target = arguments
        stream(b, rounded_pair(b, load(b, FLOATS, results), load(b, FLOATS, results, 64)), target)

    return void(int64, int64), emit


@njit(nogil=True)
def _finish_hidden(r, job):
    _, results, hidden, I, weights, grad_weights, grad_hidden, weighted = job
    gate, grad_gate = hidden + 4 * I * r, grad_hidden + 2 * (2 * I + _PADDING) * r
    store_gradients(
        results + _ROW_BYTES * r,
        gate,
        gate + 2 * I,
        weights + 4 * r,
        grad_weights + 4 * r,
        grad_gate,
        grad_gate + 2 * I,
        weighted + 2 * (I + _PADDING) * r,
    )


@njit(nogil=True)
def _finish_row(r, job):
    _, results, out, length = job
    _stream_row(results + _ROW_BYTES * r, out + length * r)


@njit(nogil=True)
def _finish_weight(r, job):
    _, results, out, sums, length, is_first, is_last = job
    result, place = results + _ROW_BYTES * r, 2 * length * r
    if not is_first:
        add_row(result, sums + 2 * place)
    if is_last:
        _stream_row(result, out + place)
    else:
        keep_row(result, sums + 2 * place)


_multiply_hidden, _multiply_rows = multiply(_finish_hidden, True), multiply(_finish_row, True)
_multiply_up, _multiply_down = multiply(_finish_weight, False), multiply(_finish_weight, True)


@njit(nogil=True)
def _hidden_gradients(rows, n, down, D, I, hidden, weights, grad_weights, grad_hidden, weighted, spaces):
    """From rows of gradients of y: of `hidden`, of the weights, and the weighted activations."""
    panel, results, zeros = spaces
    job = 0, results, hidden, I, weights, grad_weights, grad_hidden, weighted
    for r in range(n):
        zero_float(grad_weights + 4 * r)
    for i in range(0, I, PANEL):
        pack_columns(down + 2 * i, 0, D, D // 2, I, PANEL, panel, zeros)
        for start in range(0, n, ROWS):
            count = min(ROWS, n - start)
            prefetch_columns(down + 2 * (i + PANEL), 0, D, I, start, ROWS, n)
            gate = 2 * (2 * I * start + i)
            for r in range(count):
                prefetch(hidden + gate + 4 * I * r)
                prefetch(hidden + gate + 4 * I * r + 2 * I)
            streamed = rows_at(rows + 2 * (D + _PADDING) * start, 2 * (D + _PADDING))
            _multiply_hidden(packed_at(panel, D), streamed, count, D, results, job)
            job = (
                count,
                results,
                hidden + gate,
                I,
                weights + 4 * start,
                grad_weights + 4 * start,
                grad_hidden + 2 * ((2 * I + _PADDING) * start + i),
                weighted + 2 * ((I + _PADDING) * start + i),
            )
            results ^= _SIZE
    for r in range(job[0]):
        _finish_hidden(r, job)


@njit(nogil=True)
def _row_gradients(rows, n, up, D, J, out, spaces):
    """From rows of gradients of `hidden`: of the rows of x."""
    panel, results, zeros = spaces
    job = 0, results, out, 0
    for d in range(0, D, PANEL):
        pack_columns(up + 2 * d, 0, J, J // 2, D, PANEL, panel, zeros)
        for start in range(0, n, ROWS):
            count = min(ROWS, n - start)
            prefetch_columns(up + 2 * (d + PANEL), 0, J, D, start, ROWS, n)
            streamed = rows_at(rows + 2 * (J + _PADDING) * start, 2 * (J + _PADDING))
            _multiply_rows(packed_at(panel, J), streamed, count, J, results, job)
            job = count, results, out + 2 * (D * start + d), 2 * D
            results ^= _SIZE
    for r in range(job[0]):
        _finish_row(r, job)


@njit(nogil=True)
def _up_gradient(grad_hidden, J, packed, D, n, all_n, out, sums, is_first, is_last, spaces):
    """out (J, D) = the columns of `grad_hidden` · packed rows of x, or, unless this is all, `sums`."""
    panel, results, zeros = spaces
    job = 0, results, out, sums, D, is_first, is_last
    for j in range(0, J, ROWS):
        pack_columns(grad_hidden + 2 * j, 0, n, all_n // 2, J + _PADDING, ROWS, panel, zeros)
        turn(panel, 2 * ROWS * all_n)
        for d in range(0, D, PANEL):
            prefetch_columns(grad_hidden + 2 * (j + ROWS), 0, n, J + _PADDING, d, PANEL, D)
            streamed = packed_at(packed + 2 * all_n * d, all_n)
            _multiply_up(packed_at(panel, all_n), streamed, PANEL, all_n, results, job)
            place = D * j + d
            job = ROWS, results, out + 2 * place, sums + 4 * place, D, is_first, is_last
            results ^= _SIZE
    for r in range(job[0]):
        _finish_weight(r, job)


@njit(nogil=True)
def _down_gradient(turned, D, weighted, I, n, all_n, out, sums, is_first, is_last, spaces):
    """out (D, I) = turned columns of gradients of y · the rows `weighted`, or, unless this is all, `sums`."""
    panel, results, zeros = spaces
    job = 0, results, out, sums, I, is_first, is_last
    for i in range(0, I, PANEL):
        pack_columns(weighted + 2 * i, 0, n, all_n // 2, I + _PADDING, PANEL, panel, zeros)
        for d in range(0, D, ROWS):
            prefetch_columns(weighted + 2 * (i + PANEL), 0, n, I + _PADDING, d, ROWS, D)
            streamed = packed_at(turned + 2 * all_n * d, all_n)
            _multiply_down(packed_at(panel, all_n), streamed, ROWS, all_n, results, job)
            place = I * d + i
            job = ROWS, results, out + 2 * place, sums + 4 * place, I, is_first, is_last
            results ^= _SIZE
    for r in range(job[0]):
        _finish_weight(r, job)


def _swiglu_expert_gradients(
    x, grad, tokens, n, up, down, weights, D, I, hidden,
    grad_rows, grad_weights, grad_up, grad_down, sums, is_first, is_last, scratch,
):  # fmt: skip
    """See `_bfloat16_gradients`."""
    J = 2 * I
    widest, all_n = max(D, J), -(-n // ROWS) * ROWS
    results = -(-scratch // (2 * _SIZE)) * 2 * _SIZE  # two that differ in one bit
    zeros = results + 2 * _SIZE
    rows = zeros + 2 * widest
    packed = rows + 2 * all_n * (D + _PADDING)
    grad_hidden = packed + 2 * all_n * D
    weighted = grad_hidden + 2 * all_n * (J + _PADDING)
    panel = weighted + 2 * all_n * (I + _PADDING)
    spaces = panel, results, zeros
    configure()
    for z in range(0, 2 * widest, 64):
        zero(zeros + z)
    for r in range(n):
        copy_row(grad + 2 * D * read(tokens + 8 * r), rows + 2 * (D + _PADDING) * r, 2 * D)
    _hidden_gradients(rows, n, down, D, I, hidden, weights, grad_weights, grad_hidden, weighted, spaces)
    if grad_rows:
        _row_gradients(grad_hidden, n, up, D, J, grad_rows, spaces)
    if grad_up:
        pack_columns(x, tokens, n, all_n // 2, D, D, packed, zeros)
        _up_gradient(grad_hidden, J, packed, D, n, all_n, grad_up, sums, is_first, is_last, spaces)
        pack_columns(rows, 0, n, all_n // 2, D + _PADDING, D, packed, zeros)
        turn(packed, 2 * all_n * D)
        sums += 4 * J * D
        _down_gradient(packed, D, weighted, I, n, all_n, grad_down, sums, is_first, is_last, spaces)
    fence()
    release()


swiglu_expert_gradients = compiled(void(*[int64] * 18), _swiglu_expert_gradients)


def scratch_elements(n: int, D: int, I: int) -> int:
    """Of bfloat16, that `swiglu_expert_gradients` needs for n rows."""
    widest, all_n = max(D, 2 * I), n + ROWS
    return all_n * (2 * D + 3 * I + 3 * _PADDING) + 2 * _SIZE + widest + PANEL * max(widest, all_n)
