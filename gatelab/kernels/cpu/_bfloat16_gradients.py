"""The backward pass of `_bfloat16_blocks`: its four products and what lies between them, in numba (extra `fast`).

The gradients of activated rows and of tokens are sums along the rows of what comes in, and down the columns of a
weight. A weight's gradient is a sum over the rows of an expert: down the columns of both factors.
"""

from typing import Any

from numba import int64, njit, void

from gatelab.kernels.cpu._bfloat16_tiles import (
    PANEL,
    ROWS,
    dot_products,
    pack_columns,
    pack_rows,
    prefetch,
    prefetch_columns,
    rounded_pair,
    store_row,
    tile_row,
)
from gatelab.kernels.cpu._emit import (
    FLOAT,
    FLOATS,
    LANES,
    compiled,
    constant,
    inline,
    load,
    load_bfloat16,
    splat,
    store,
    swiglu_gradients,
    total,
)

MOST_COLUMNS = 1 << 30  # of x: no limit has been found


@inline
def store_gradients(
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
        scale, halves = splat(b, load(b, FLOAT, weight)), []
        for half in range(2):
            g, u = (load_bfloat16(b, b.add(address, address.type(32 * half))) for address in (gate, up))
            halves.append(swiglu_gradients(b, load(b, FLOATS, results, 64 * half), g, u, scale))
        *outputs, products = zip(*halves, strict=True)
        for output, target in zip(outputs, targets, strict=True):
            store(b, rounded_pair(b, *output), target)
        store(b, b.fadd(load(b, FLOAT, grad_weight), total(b, b.fadd(*products))), grad_weight)

    return void(*[int64] * 8), emit


@inline
def add_row(context: Any, results: Any, sums: Any) -> Any:
    """Adds 32 sums to the results."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        for offset in (0, 64):
            result, earlier = (load(b, FLOATS, address, offset) for address in arguments)
            store(b, b.fadd(result, earlier), arguments[0], offset)

    return void(int64, int64), emit


@inline
def keep_row(context: Any, results: Any, sums: Any) -> Any:
    """32 results in float32."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        for offset in (0, 64):
            store(b, load(b, FLOATS, arguments[0], offset), arguments[1], offset)

    return void(int64, int64), emit


@inline
def zero(context: Any, address: Any) -> Any:
    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        store(b, constant(FLOATS, 0.0), arguments[0])

    return void(int64), emit


@inline
def zero_float(context: Any, address: Any) -> Any:
    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        store(b, FLOAT(0.0), arguments[0])

    return void(int64), emit


@njit(nogil=True)
def _hidden_gradients(packed, n, down, D, I, hidden, weights, grad_weights, grad_hidden, weighted, spaces):
    """From packed gradients of y: of `hidden`, of the weights, and the weighted activations."""
    panel, results, zeros = spaces
    for r in range(n):
        zero_float(grad_weights + 4 * r)
    for i in range(0, I, PANEL):
        pack_columns(down + 2 * i, 0, D, D // 2, I, PANEL, panel, zeros)
        for start in range(0, n, ROWS):
            prefetch_columns(down + 2 * (i + PANEL), 0, D, I, start, ROWS, n)
            for row in range(start + ROWS, start + 2 * ROWS):
                prefetch(hidden + 2 * (2 * I * row + i))
                prefetch(hidden + 2 * (2 * I * row + I + i))
            dot_products(tile_row(packed, start, D // 2), panel, panel + 32 * D, D // 2, results)
            for r in range(start, min(start + ROWS, n)):
                gate = 2 * (2 * I * r + i)
                up = gate + 2 * I
                targets = grad_hidden + gate, grad_hidden + up, weighted + 2 * (I * r + i)
                result = results + 128 * (r - start)
                places = hidden + gate, hidden + up, weights + 4 * r, grad_weights + 4 * r
                store_gradients(result, *places, *targets)


@njit(nogil=True)
def _row_gradients(packed, n, up, D, J, out, spaces):
    """From packed gradients of `hidden`: of the rows of x."""
    panel, results, zeros = spaces
    for d in range(0, D, PANEL):
        pack_columns(up + 2 * d, 0, J, J // 2, D, PANEL, panel, zeros)
        for start in range(0, n, ROWS):
            prefetch_columns(up + 2 * (d + PANEL), 0, J, D, start, ROWS, n)
            dot_products(tile_row(packed, start, J // 2), panel, panel + 32 * J, J // 2, results)
            for r in range(start, min(start + ROWS, n)):
                store_row(results + 128 * (r - start), out + 2 * (D * r + d))


@njit(nogil=True)
def _weight_gradient(packed, M, n, factor, tokens, N, out, sums, is_first, is_last, spaces):
    """out (M, N) = M packed columns · the rows `tokens` of a factor with N columns, or, unless this is all, `sums`."""
    panel, results, zeros = spaces
    pairs = (n + 1) // 2
    for c in range(0, N, PANEL):
        pack_columns(factor + 2 * c, tokens, n, pairs, N, PANEL, panel, zeros)
        for start in range(0, M, ROWS):
            prefetch_columns(factor + 2 * (c + PANEL), tokens, n, N, start, ROWS, M)
            dot_products(tile_row(packed, start, pairs), panel, panel + 64 * pairs, pairs, results)
            for r in range(ROWS):
                result, place = results + 128 * r, N * (start + r) + c
                if not is_first:
                    add_row(result, sums + 4 * place)
                if is_last:
                    store_row(result, out + 2 * place)
                else:
                    keep_row(result, sums + 4 * place)


def _swiglu_expert_gradients(
    x, grad, tokens, n, up, down, weights, D, I, hidden,
    grad_rows, grad_weights, grad_up, grad_down, sums, is_first, is_last, scratch,
):  # fmt: skip
    """Of the weighted rows down(silu(gate(x))·up(x)) whose gradients are the rows `tokens` of `grad`.

    To grad_rows (n, D) that of the rows of x, unless it is 0; to grad_up (2·I, D) and grad_down (D, I) those of the
    weights, unless grad_up is 0, or, except for the last block of an expert, to `sums`, in float32, one behind the
    other; to `grad_weights` that of the combine weights.
    """
    J = 2 * I
    widest, packed_n = max(D, J), -(-n // LANES) * LANES
    packed = scratch
    grad_hidden = packed + 2 * packed_n * widest
    weighted = grad_hidden + 2 * n * J
    panel = weighted + 2 * n * I
    results = panel + 64 * max(widest, packed_n)
    addresses = results + 4 * ROWS * PANEL
    zeros = addresses + 8 * LANES
    spaces = panel, results, zeros
    for z in range(0, 2 * widest, 64):
        zero(zeros + z)
    pack_rows(grad, tokens, n, D, packed, addresses)
    _hidden_gradients(packed, n, down, D, I, hidden, weights, grad_weights, grad_hidden, weighted, spaces)
    if grad_rows:
        pack_rows(grad_hidden, 0, n, J, packed, addresses)
        _row_gradients(packed, n, up, D, J, grad_rows, spaces)
    if grad_up:
        pack_columns(grad_hidden, 0, n, (n + 1) // 2, J, J, packed, zeros)
        _weight_gradient(packed, J, n, x, tokens, D, grad_up, sums, is_first, is_last, spaces)
        pack_columns(grad, tokens, n, (n + 1) // 2, D, D, packed, zeros)
        sums += 4 * J * D
        _weight_gradient(packed, D, n, weighted, 0, I, grad_down, sums, is_first, is_last, spaces)


swiglu_expert_gradients = compiled(void(*[int64] * 18), _swiglu_expert_gradients)


def scratch_elements(n: int, D: int, I: int) -> int:
    """Of bfloat16, that `swiglu_expert_gradients` needs for n rows."""
    widest, packed_n = max(D, 2 * I), n + LANES
    return packed_n * (widest + 3 * I) + PANEL * max(widest, packed_n) + 2 * ROWS * PANEL + 4 * LANES + widest
