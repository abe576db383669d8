"""SwiGLU experts in bfloat16, in numba (extra `fast`), for processors with AVX512_BF16 and without AMX.

oneDNN reorders a whole weight matrix before every product, a tenth of its time with the few rows of one expert, and
every step between two products is another pass over the rows. Here 32 rows of a weight (a *panel*, which fits in the
first cache) are reordered at a time and meet all rows of the block, and what follows a product is done with its
float32 results while they are in the first cache.

The instruction adds the products of two neighbouring features, a *pair* of 32 bits. Packed rows are pairs, feature by
feature, of `ROWS` rows at a time; a packed panel is pairs, feature by feature, of its rows. Matrices are passed by
address and contiguous; D and I are multiples of 32.
"""

from typing import Any

from llvmlite import ir
from numba import int64, njit, void

from gatelab.kernels.cpu._emit import (
    FLOAT,
    FLOATS,
    INT,
    INTS,
    LANES,
    LONG,
    SHORTS,
    call,
    compiled,
    constant,
    inline,
    load,
    sigmoid,
    splat,
    store,
)

ROWS = 12  # times two vectors of results: 24 of the 32 registers
_PANEL = 2 * LANES


def _store_rounded(b: Any, floats: Any, address: Any, offset: int = 0) -> None:
    store(b, call(b, "llvm.x86.avx512bf16.cvtneps2bf16.512", SHORTS, floats), address, offset)


@inline
def _dot_products(context: Any, rows: Any, panel: Any, pairs: Any, results: Any) -> Any:
    """results (ROWS, 32) float32 = packed rows · packed panelᵀ."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        rows, panel, pairs, results = arguments
        before, loop, after = b.block, b.append_basic_block("pairs"), b.append_basic_block("done")
        b.branch(loop)
        b.position_at_end(loop)
        left, row, column = b.phi(LONG), b.phi(LONG), b.phi(LONG)
        old = [b.phi(FLOATS) for _ in range(2 * ROWS)]
        weights = [load(b, INTS, column, 64 * half) for half in range(2)]
        sums = []
        for r in range(ROWS):
            x = splat(b, load(b, INT, row, 4 * r))
            for half in range(2):
                name = "llvm.x86.avx512bf16.dpbf16ps.512"
                sums.append(call(b, name, FLOATS, old[2 * r + half], weights[half], x))
        one_less = b.sub(left, LONG(1))
        steps = [(left, pairs, one_less)]
        steps += [(row, rows, b.add(row, LONG(4 * ROWS))), (column, panel, b.add(column, LONG(4 * _PANEL)))]
        steps += [(o, constant(FLOATS, 0.0), s) for o, s in zip(old, sums, strict=True)]
        for phi, first, following in steps:
            phi.add_incoming(first, before)
            phi.add_incoming(following, loop)
        b.cbranch(b.icmp_signed("!=", one_less, LONG(0)), loop, after)
        b.position_at_end(after)
        for i, total in enumerate(sums):
            store(b, total, results, 64 * i)

    return void(int64, int64, int64, int64), emit


@inline
def _transpose(context: Any, addresses: Any, offset: Any, target: Any, stride: Any) -> Any:
    """16 pairs from `offset` on of the 16 rows at `addresses`, feature by feature, `stride` bytes apart at `target`."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        addresses, offset, target, stride = arguments
        rows = [load(b, INTS, b.add(load(b, LONG, addresses, 8 * i), offset)) for i in range(LANES)]
        for d in (8, 4, 2, 1):  # swaps the off-diagonal quarters of every 2d × 2d square
            low = ir.Constant(INTS, [LANES + (l ^ d) if l & d else l for l in range(LANES)])
            high = ir.Constant(INTS, [LANES + l if l & d else l | d for l in range(LANES)])
            for i in range(LANES):
                if not i & d:
                    upper, lower = rows[i], rows[i + d]
                    rows[i] = b.shuffle_vector(upper, lower, low)
                    rows[i + d] = b.shuffle_vector(upper, lower, high)
        for i, row in enumerate(rows):
            store(b, row, b.add(target, b.mul(stride, LONG(i))))

    return void(int64, int64, int64, int64), emit


@inline
def _read(context: Any, address: Any) -> Any:
    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        return load(b, LONG, arguments[0])

    return int64(int64), emit


@inline
def _write(context: Any, address: Any, value: Any) -> Any:
    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        store(b, arguments[1], arguments[0])

    return void(int64, int64), emit


@inline
def _store_half(context: Any, results: Any, target: Any) -> Any:
    """16 results in bfloat16."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        _store_rounded(b, load(b, FLOATS, arguments[0]), arguments[1])

    return void(int64, int64), emit


@inline
def _store_scaled(context: Any, results: Any, weight: Any, target: Any) -> Any:
    """32 results times the float32 at `weight`."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        results, weight, target = arguments
        scale = splat(b, load(b, FLOAT, weight))
        for half in range(2):
            _store_rounded(b, b.fmul(load(b, FLOATS, results, 64 * half), scale), target, 32 * half)

    return void(int64, int64, int64), emit


@inline
def _store_swiglu(context: Any, results: Any, target: Any) -> Any:
    """silu(g)·u of 16 results g and the 16 behind them."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        results, target = arguments
        gate, up = load(b, FLOATS, results), load(b, FLOATS, results, 64)
        _store_rounded(b, b.fmul(b.fmul(gate, sigmoid(b, gate)), up), target)

    return void(int64, int64), emit


@njit(nogil=True)
def _pack_rows(rows, tokens, n, features, packed, addresses):
    """Rows `tokens` (an address of int64; 0: all) of a matrix. What fills the last `ROWS` is arbitrary."""
    for start in range(0, n, ROWS):
        for r in range(LANES):  # the last four are overwritten by what follows
            i = min(start + min(r, ROWS - 1), n - 1)
            _write(addresses + 8 * r, rows + 2 * features * (_read(tokens + 8 * i) if tokens else i))
        for f in range(0, features, _PANEL):
            _transpose(addresses, 2 * f, packed + 2 * (start * features + f * ROWS), 4 * ROWS)


@njit(nogil=True)
def _pack_half_panel(weight_rows, features, panel, addresses):
    for r in range(LANES):
        _write(addresses + 8 * r, weight_rows + 2 * features * r)
    for f in range(0, features, _PANEL):
        _transpose(addresses, 2 * f, panel + 2 * f * _PANEL, 4 * _PANEL)


@njit(nogil=True)
def _up(packed, n, weight, D, I, hidden, activated, panel, results, addresses):
    for i in range(0, I, LANES):
        _pack_half_panel(weight + 2 * D * i, D, panel, addresses)
        _pack_half_panel(weight + 2 * D * (I + i), D, panel + 64, addresses)
        for start in range(0, n, ROWS):
            _dot_products(packed + 2 * D * start, panel, D // 2, results)
            for r in range(min(ROWS, n - start)):
                result, row = results + 128 * r, start + r
                if hidden:
                    _store_half(result, hidden + 2 * (2 * I * row + i))
                    _store_half(result + 64, hidden + 2 * (2 * I * row + I + i))
                _store_swiglu(result, activated + 2 * (I * row + i))


@njit(nogil=True)
def _down(packed, n, weight, D, I, weights, out, panel, results, addresses):
    for d in range(0, D, _PANEL):
        _pack_half_panel(weight + 2 * I * d, I, panel, addresses)
        _pack_half_panel(weight + 2 * I * (d + LANES), I, panel + 64, addresses)
        for start in range(0, n, ROWS):
            _dot_products(packed + 2 * I * start, panel, I // 2, results)
            for r in range(min(ROWS, n - start)):
                _store_scaled(results + 128 * r, weights + 4 * (start + r), out + 2 * (D * (start + r) + d))


def _swiglu_expert(x, tokens, n, up_proj, down_proj, weights, D, I, hidden, out, scratch):
    """out (n, D) = weights · down(silu(gate(x))·up(x)) for the rows `tokens` of x; keeps `hidden` (n, 2·I) if not 0."""
    packed_n = -(-n // ROWS) * ROWS
    activated = scratch
    packed = activated + 2 * packed_n * I
    panel = packed + 2 * packed_n * max(D, I) + 64
    results = panel + 2 * _PANEL * max(D, I)
    addresses = results + 4 * ROWS * _PANEL
    _pack_rows(x, tokens, n, D, packed, addresses)
    _up(packed, n, up_proj, D, I, hidden, activated, panel, results, addresses)
    _pack_rows(activated, 0, n, I, packed, addresses)
    _down(packed, n, down_proj, D, I, weights, out, panel, results, addresses)


swiglu_expert = compiled(void(*[int64] * 11), _swiglu_expert)


def scratch_elements(n: int, D: int, I: int) -> int:
    """Of bfloat16, that `swiglu_expert` needs for n rows."""
    return (n + ROWS) * (I + max(D, I)) + _PANEL * max(D, I) + 2 * ROWS * _PANEL + 256
