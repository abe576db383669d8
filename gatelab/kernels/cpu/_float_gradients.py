"""The backward pass of `_float_blocks`: its products and what lies between them, in numba (extra `fast`).

The gradients of activated rows and of tokens are sums along the rows of what comes in, and down the columns of a
weight. A weight's gradient is a sum over the rows of an expert: down the columns of both factors.
"""

from typing import Any

from numba import int64, njit, void

from gatelab.kernels.cpu._bfloat16_gradients import zero_float
from gatelab.kernels.cpu._bfloat16_tiles import prefetch
from gatelab.kernels.cpu._emit import (
    FLOAT,
    FLOATS,
    LANES,
    compiled,
    fence,
    inline,
    load,
    splat,
    store,
    swiglu_gradients,
    total,
)
from gatelab.kernels.cpu._float_tiles import (
    PANEL,
    ROWS,
    add_row,
    copy_columns,
    copy_row,
    dot_products,
    expect,
    gather_panels,
    pack_columns,
    pack_rows,
    step_of,
    stream_half,
    tile_of_columns,
    tile_of_rows,
)

MOST_COLUMNS = 1024  # of x: with 2048 panels leave the second cache, and torch's operations are faster
_TERMS = 512  # of a sum at once, or columns: so that all tiles stay in the second cache


@inline
def _store_gradients(
    context: Any,
    results: Any,
    gate: Any,
    up: Any,
    weight: Any,
    grad_weight: Any,
    grad_gate: Any,
    grad_up: Any,
    weighted: Any,
) -> Any:
    """32 results, gradients of a = silu(gate)·up before its weight: stores what follows, and adds grad · a to that of
    the weight.
    """

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        results, gate, up, weight, grad_weight, *targets = arguments
        scale, products = splat(b, load(b, FLOAT, weight)), []
        for offset in (0, 64):
            d, g, u = (load(b, FLOATS, address, offset) for address in (results, gate, up))
            *outputs, product = swiglu_gradients(b, d, g, u, scale)
            for output, target in zip(outputs, targets, strict=True):
                store(b, output, target, offset)
            products.append(product)
        store(b, b.fadd(load(b, FLOAT, grad_weight), total(b, b.fadd(*products))), grad_weight)

    return void(*[int64] * 8), emit


@njit(nogil=True)
def _hidden_gradients(packed, n, down, D, I, hidden, weights, grad_weights, grad_hidden, weighted, panel, results):
    """From packed gradients of y: of `hidden`, of the weights, and the weighted activations, in panels."""
    for r in range(n):
        zero_float(grad_weights + 4 * r)
    for i in range(0, I, PANEL):
        copy_columns(down + 4 * i, 0, D, I, panel)
        for start in range(0, n, ROWS):
            for row in range(start, min(start + ROWS, n)):
                for line in (0, 64):
                    prefetch(hidden + 4 * (2 * I * row + i) + line)
                    prefetch(hidden + 4 * (2 * I * row + I + i) + line)
            rows = min(ROWS, n - start)
            ahead = down + 4 * (i + PANEL) + 4 * I * (D * start // n)
            dot_products(rows, tile_of_rows(packed, start, D), panel, D, results, ahead, 4 * I, step_of(D, rows, n, D))
            for r in range(start, start + rows):
                gate = 4 * (2 * I * r + i)
                up = gate + 4 * I
                _store_gradients(
                    results + 128 * (r - start),
                    hidden + gate,
                    hidden + up,
                    weights + 4 * r,
                    grad_weights + 4 * r,
                    grad_hidden + gate,
                    grad_hidden + up,
                    weighted + 4 * (n * i + PANEL * r),
                )


@njit(nogil=True)
def _row_gradients(grad_hidden, n, up, D, J, out, packed, panel, results, addresses):
    """From gradients of `hidden`: of the rows of x."""
    is_all = J <= _TERMS
    for j in range(0, J, _TERMS):
        terms = min(_TERMS, J - j)
        pack_rows(grad_hidden + 4 * j, 0, n, J, terms, packed, addresses)
        for d in range(0, D, PANEL):
            copy_columns(up + 4 * (D * j + d), 0, terms, D, panel)
            for start in range(0, n, ROWS):
                rows = min(ROWS, n - start)
                target = out + 4 * (D * start + d)
                if not is_all:
                    expect(target, D, rows, 128)
                ahead = up + 4 * (D * j + d + PANEL) + 4 * D * (terms * start // n)
                step = step_of(terms, rows, n, terms)
                dot_products(rows, tile_of_rows(packed, start, terms), panel, terms, results, ahead, 4 * D, step)
                if is_all:
                    for r in range(rows):
                        stream_half(results + 128 * r, target + 4 * D * r)
                        stream_half(results + 128 * r + 64, target + 4 * D * r + 64)
                else:
                    _keep(results, rows, target, D, j == 0)


@njit(nogil=True)
def _keep(results, n, out, row_length, is_first):
    for r in range(n):
        if is_first:
            copy_row(results + 128 * r, out + 4 * row_length * r)
        else:
            add_row(results + 128 * r, out + 4 * row_length * r)


@njit(nogil=True)
def _weight_gradient(left, tokens, M, panels, N, n, out, is_first, packed, results):
    """out (M, N) = leftᵀ · panels, sums over n rows, `tokens` of the left (an address of int64; 0: all)."""
    for m in range(0, M, _TERMS):
        columns = min(_TERMS, M - m)
        pack_columns(left + 4 * m, tokens, n, M, columns, packed)
        for c in range(0, N, PANEL):
            panel = panels + 4 * n * c
            for start in range(0, columns, ROWS):
                rows = min(ROWS, columns - start)
                target = out + 4 * (N * (m + start) + c)
                expect(target, N, rows, 128)
                ahead = panel + 128 * n + 128 * (n * start // columns)
                step = step_of(n, rows, columns, n)
                dot_products(rows, tile_of_columns(packed, start, n, columns), panel, n, results, ahead, 128, step)
                _keep(results, rows, target, N, is_first)


def _swiglu_expert_gradients(
    x, grad, tokens, n, up, down, weights, D, I, hidden,
    grad_rows, grad_weights, grad_up, grad_down, sums, is_first, is_last, scratch,
):  # fmt: skip
    """See `_bfloat16_gradients`. Here `sums` is not needed: blocks of an expert add up in grad_up and grad_down."""
    J = 2 * I
    grad_hidden = scratch
    weighted = grad_hidden + 4 * n * J
    panel = panels = weighted + 4 * n * I
    results = panel + 4 * max(PANEL * max(D, _TERMS), n * D)
    addresses = results + 4 * ROWS * PANEL
    packed = addresses + 8 * LANES
    pack_rows(grad, tokens, n, D, D, packed, addresses)
    _hidden_gradients(packed, n, down, D, I, hidden, weights, grad_weights, grad_hidden, weighted, panel, results)
    if grad_rows:
        _row_gradients(grad_hidden, n, up, D, J, grad_rows, packed, panel, results, addresses)
    fence()
    if grad_up:
        gather_panels(x, tokens, n, D, panels)
        _weight_gradient(grad_hidden, 0, J, panels, D, n, grad_up, is_first, packed, results)
        _weight_gradient(grad, tokens, D, weighted, I, n, grad_down, is_first, packed, results)


swiglu_expert_gradients = compiled(void(*[int64] * 18), _swiglu_expert_gradients)


def scratch_elements(n: int, D: int, I: int) -> int:
    """Of float32, that `swiglu_expert_gradients` needs for n rows."""
    tiles = max(-(-n // ROWS) * max(D, _TERMS), -(-_TERMS // ROWS) * n)
    return n * 3 * I + max(PANEL * max(D, _TERMS), n * D) + ROWS * PANEL + 2 * LANES + LANES * (tiles + 1)
