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
from numba.core import cgutils
from numba.extending import intrinsic

ROWS = 12  # times two vectors of results: 24 of the 32 registers
_LANES, _PANEL = 16, 32
_LONG, _FLOAT = ir.IntType(64), ir.FloatType()
_FLOATS, _PAIRS = ir.VectorType(_FLOAT, _LANES), ir.VectorType(ir.IntType(32), _LANES)
_BFLOATS = ir.VectorType(ir.IntType(16), _LANES)
_LOG2_E = 1.4426950408889634
_POWER = (1.0, 0.6931471805599453, 0.2402265069591007, 0.0555041086648216, 0.0096181291076285, 0.0013333558146428)
# 2^r = Σ (r·ln 2)^i / i!; for |r| ≤ 1/2 the next term is below 3e-6, a thousandth of a bfloat16's last place


def _inline(function: Any) -> Any:
    """What compiled code calls without the context that the typing function is given."""
    return intrinsic(function)


def _at(b: Any, address: Any, offset: int, kind: Any) -> Any:
    return b.inttoptr(b.add(address, _LONG(offset)), kind.as_pointer())


def _load(b: Any, kind: Any, address: Any, offset: int = 0) -> Any:
    return b.load(_at(b, address, offset, kind), align=2)


def _store(b: Any, value: Any, address: Any, offset: int = 0) -> None:
    b.store(value, _at(b, address, offset, value.type), align=2)


def _call(b: Any, name: str, result: Any, *arguments: Any) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), arguments)


def _constant(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _splat(b: Any, scalar: Any) -> Any:
    kind = ir.VectorType(scalar.type, _LANES)
    undefined = ir.Constant(kind, ir.Undefined)
    lanes = ir.Constant(_PAIRS, [0] * _LANES)
    return b.shuffle_vector(b.insert_element(undefined, scalar, ir.IntType(32)(0)), undefined, lanes)


def _store_rounded(b: Any, floats: Any, address: Any, offset: int = 0) -> None:
    _store(b, _call(b, "llvm.x86.avx512bf16.cvtneps2bf16.512", _BFLOATS, floats), address, offset)


@_inline
def _dot_products(context: Any, rows: Any, panel: Any, pairs: Any, results: Any) -> Any:
    """results (ROWS, 32) float32 = packed rows · packed panelᵀ."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        rows, panel, pairs, results = arguments
        before, loop, after = b.block, b.append_basic_block("pairs"), b.append_basic_block("done")
        b.branch(loop)
        b.position_at_end(loop)
        left, row, column = b.phi(_LONG), b.phi(_LONG), b.phi(_LONG)
        old = [b.phi(_FLOATS) for _ in range(2 * ROWS)]
        weights = [_load(b, _PAIRS, column, 64 * half) for half in range(2)]
        sums = []
        for r in range(ROWS):
            x = _splat(b, _load(b, ir.IntType(32), row, 4 * r))
            for half in range(2):
                name = "llvm.x86.avx512bf16.dpbf16ps.512"
                sums.append(_call(b, name, _FLOATS, old[2 * r + half], weights[half], x))
        one_less = b.sub(left, _LONG(1))
        steps = [(left, pairs, one_less)]
        steps += [(row, rows, b.add(row, _LONG(4 * ROWS))), (column, panel, b.add(column, _LONG(4 * _PANEL)))]
        steps += [(o, _constant(_FLOATS, 0.0), s) for o, s in zip(old, sums, strict=True)]
        for phi, first, following in steps:
            phi.add_incoming(first, before)
            phi.add_incoming(following, loop)
        b.cbranch(b.icmp_signed("!=", one_less, _LONG(0)), loop, after)
        b.position_at_end(after)
        for i, total in enumerate(sums):
            _store(b, total, results, 64 * i)

    return void(int64, int64, int64, int64), emit


@_inline
def _transpose(context: Any, addresses: Any, offset: Any, target: Any, stride: Any) -> Any:
    """16 pairs from `offset` on of the 16 rows at `addresses`, feature by feature, `stride` bytes apart at `target`."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        addresses, offset, target, stride = arguments
        rows = [_load(b, _PAIRS, b.add(_load(b, _LONG, addresses, 8 * i), offset)) for i in range(_LANES)]
        for d in (8, 4, 2, 1):  # swaps the off-diagonal quarters of every 2d × 2d square
            low = ir.Constant(_PAIRS, [_LANES + (l ^ d) if l & d else l for l in range(_LANES)])
            high = ir.Constant(_PAIRS, [_LANES + l if l & d else l | d for l in range(_LANES)])
            for i in range(_LANES):
                if not i & d:
                    upper, lower = rows[i], rows[i + d]
                    rows[i] = b.shuffle_vector(upper, lower, low)
                    rows[i + d] = b.shuffle_vector(upper, lower, high)
        for i, row in enumerate(rows):
            _store(b, row, b.add(target, b.mul(stride, _LONG(i))))

    return void(int64, int64, int64, int64), emit


@_inline
def _read(context: Any, address: Any) -> Any:
    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        return _load(b, _LONG, arguments[0])

    return int64(int64), emit


@_inline
def _write(context: Any, address: Any, value: Any) -> Any:
    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        _store(b, arguments[1], arguments[0])

    return void(int64, int64), emit


@_inline
def _store_half(context: Any, results: Any, target: Any) -> Any:
    """16 results in bfloat16."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        _store_rounded(b, _load(b, _FLOATS, arguments[0]), arguments[1])

    return void(int64, int64), emit


@_inline
def _store_scaled(context: Any, results: Any, weight: Any, target: Any) -> Any:
    """32 results times the float32 at `weight`."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        results, weight, target = arguments
        scale = _splat(b, _load(b, _FLOAT, weight))
        for half in range(2):
            _store_rounded(b, b.fmul(_load(b, _FLOATS, results, 64 * half), scale), target, 32 * half)

    return void(int64, int64, int64), emit


@_inline
def _store_swiglu(context: Any, results: Any, target: Any) -> Any:
    """silu(g)·u of 16 results g and the 16 behind them."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        results, target = arguments
        gate, up = _load(b, _FLOATS, results), _load(b, _FLOATS, results, 64)
        power = b.fmul(gate, _constant(_FLOATS, -_LOG2_E))
        for name, limit in (("llvm.minnum.v16f32", 127.0), ("llvm.maxnum.v16f32", -127.0)):
            power = _call(b, name, _FLOATS, power, _constant(_FLOATS, limit))
        whole = _call(b, "llvm.rint.v16f32", _FLOATS, power)
        rest, two_to_rest = b.fsub(power, whole), _constant(_FLOATS, _POWER[-1])
        for coefficient in _POWER[-2::-1]:
            two_to_rest = _call(b, "llvm.fma.v16f32", _FLOATS, two_to_rest, rest, _constant(_FLOATS, coefficient))
        exponent = b.shl(b.fptosi(whole, _PAIRS), _constant(_PAIRS, 23))
        exponential = b.bitcast(b.add(b.bitcast(two_to_rest, _PAIRS), exponent), _FLOATS)
        sigmoid_inverse = b.fadd(exponential, _constant(_FLOATS, 1.0))
        _store_rounded(b, b.fmul(b.fdiv(gate, sigmoid_inverse), up), target)

    return void(int64, int64), emit


@njit(nogil=True)
def _pack_rows(rows, tokens, n, features, packed, addresses):
    """Rows `tokens` (an address of int64; 0: all) of a matrix. What fills the last `ROWS` is arbitrary."""
    for start in range(0, n, ROWS):
        for r in range(_LANES):  # the last four are overwritten by what follows
            i = min(start + min(r, ROWS - 1), n - 1)
            _write(addresses + 8 * r, rows + 2 * features * (_read(tokens + 8 * i) if tokens else i))
        for f in range(0, features, _PANEL):
            _transpose(addresses, 2 * f, packed + 2 * (start * features + f * ROWS), 4 * ROWS)


@njit(nogil=True)
def _pack_half_panel(weight_rows, features, panel, addresses):
    for r in range(_LANES):
        _write(addresses + 8 * r, weight_rows + 2 * features * r)
    for f in range(0, features, _PANEL):
        _transpose(addresses, 2 * f, panel + 2 * f * _PANEL, 4 * _PANEL)


@njit(nogil=True)
def _up(packed, n, weight, D, I, hidden, activated, panel, results, addresses):
    for i in range(0, I, _LANES):
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
        _pack_half_panel(weight + 2 * I * (d + _LANES), I, panel + 64, addresses)
        for start in range(0, n, ROWS):
            _dot_products(packed + 2 * I * start, panel, I // 2, results)
            for r in range(min(ROWS, n - start)):
                _store_scaled(results + 128 * r, weights + 4 * (start + r), out + 2 * (D * (start + r) + d))


def _kept(function: Any) -> Any:
    """Compile now, and keep the machine code on disk if there is a place for it."""
    try:
        return njit(void(*[int64] * 11), nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package's directory nor the user's can be written
        return njit(void(*[int64] * 11), nogil=True)(function)


@_kept
def swiglu_expert(x, tokens, n, up_proj, down_proj, weights, D, I, hidden, out, scratch):
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


def scratch_elements(n: int, D: int, I: int) -> int:
    """Of bfloat16, that `swiglu_expert` needs for n rows."""
    return (n + ROWS) * (I + max(D, I)) + _PANEL * max(D, I) + 2 * ROWS * _PANEL + 256
