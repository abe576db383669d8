"""What the numba kernels of the experts are made of: vectors of 16 float32 in LLVM's language, and how they are kept.

Each function writes instructions with `b`, an `llvmlite.ir.IRBuilder`. Matrices are passed to kernels by address.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llvmlite import ir
from numba import njit, void
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
LONG, INT, FLOAT = ir.IntType(64), ir.IntType(32), ir.FloatType()
FLOATS, INTS, SHORTS = (ir.VectorType(kind, LANES) for kind in (FLOAT, INT, ir.IntType(16)))
_LOG2_E = 1.4426950408889634
_POWERS = [0.6931471805599453**i for i in range(8)]
_FACTORIALS = (1, 1, 2, 6, 24, 120, 720, 5040)
_KINDS = ("emit", "amx", "bfloat16", "float", "few", "regions", "swiglu")
_SOURCES = [source for kind in _KINDS for source in sorted(Path(__file__).parent.glob(f"_{kind}*.py"))]
_VERSION = hashlib.sha256(b"".join(source.read_bytes() for source in _SOURCES)).hexdigest()[:8]


def compiled(signature: Any, function: Callable[..., None]) -> Callable[..., None]:
    """Compile now, and keep the machine code on disk under the version of all these files, if there is a place for it.

    Numba by itself looks at the function's own file alone, and would run old code of another one after an upgrade.
    """
    function.__qualname__ = f"{function.__name__}_{_VERSION}"
    try:
        return njit(signature, nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package's directory nor the user's can be written
        return njit(signature, nogil=True)(function)


def inline(function: Any) -> Any:
    """What compiled code calls without the context that the typing function is given."""
    return intrinsic(function)


def load(b: Any, kind: Any, address: Any, offset: int = 0) -> Any:
    return b.load(b.inttoptr(b.add(address, LONG(offset)), kind.as_pointer()), align=2)


def store(b: Any, value: Any, address: Any, offset: int = 0) -> None:
    b.store(value, b.inttoptr(b.add(address, LONG(offset)), value.type.as_pointer()), align=2)


def stream(b: Any, value: Any, address: Any) -> None:
    """Store 64 aligned bytes past the caches, so that no line is read to be overwritten; `fence` ends a series."""
    instruction = b.store(value, b.inttoptr(address, value.type.as_pointer()), align=64)
    instruction.set_metadata("nontemporal", b.module.add_metadata([INT(1)]))


@inline
def fence(context: Any) -> Any:
    """What has been streamed is there for other cores before what follows."""

    def emit(_: Any, b: Any, __: Any, ___: Any) -> Any:
        call(b, "llvm.x86.sse.sfence", ir.VoidType())

    return void(), emit


def call(b: Any, name: str, result: Any, *arguments: Any, flags: tuple[str, ...] = ()) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), arguments, fastmath=flags)


def constant(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [value] * LANES)


def splat(b: Any, scalar: Any) -> Any:
    undefined = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    return b.shuffle_vector(b.insert_element(undefined, scalar, INT(0)), undefined, constant(INTS, 0))


def sigmoid(b: Any, gate: Any, terms: int = len(_FACTORIALS)) -> Any:
    """1 / (1 + 2^(−gate·log2 e)), the power of the rest after rounding by its series: Σ (r·ln 2)^i / i!, |r| ≤ 1/2.

    All terms are for float32. With fewer the reciprocal is an estimate, to 2⁻²⁸ after one step of Newton's.
    """
    power = b.fmul(gate, constant(FLOATS, -_LOG2_E))
    for name, limit in (("minnum", 127.0), ("maxnum", -127.0)):  # of a float32's exponent
        power = call(b, f"llvm.{name}.v16f32", FLOATS, power, constant(FLOATS, limit))
    whole = call(b, "llvm.rint.v16f32", FLOATS, power)
    rest, series = b.fsub(power, whole), constant(FLOATS, 0.0)
    for ln2_to_i, factorial in zip(reversed(_POWERS[:terms]), reversed(_FACTORIALS[:terms]), strict=True):
        series = call(b, "llvm.fma.v16f32", FLOATS, series, rest, constant(FLOATS, ln2_to_i / factorial))
    exponent = b.shl(b.fptosi(whole, INTS), constant(INTS, 23))
    exponential = b.bitcast(b.add(b.bitcast(series, INTS), exponent), FLOATS)
    one = constant(FLOATS, 1.0)
    below = b.fadd(exponential, one)
    if terms == len(_FACTORIALS):
        return b.fdiv(one, below)
    all_lanes = ir.Constant(ir.IntType(16), -1)
    estimate = call(b, "llvm.x86.avx512.rcp14.ps.512", FLOATS, below, constant(FLOATS, 0.0), all_lanes)
    error = call(b, "llvm.fma.v16f32", FLOATS, b.fneg(below), estimate, one)
    return call(b, "llvm.fma.v16f32", FLOATS, error, estimate, estimate)


def swiglu_gradients(b: Any, grad: Any, gate: Any, up: Any, weight: Any) -> tuple[Any, Any, Any, Any]:
    """From that of a = silu(gate)·up before its weight: of gate and of up; a · weight; grad · a."""
    slope, grad_weighted = sigmoid(b, gate), b.fmul(grad, weight)
    silu = b.fmul(gate, slope)
    a = b.fmul(silu, up)
    # silu'(g) = sigmoid(g) + silu(g)·(1 − sigmoid(g))
    slope = b.fadd(slope, b.fmul(silu, b.fsub(constant(FLOATS, 1.0), slope)))
    grad_gate = b.fmul(b.fmul(grad_weighted, up), slope)
    return grad_gate, b.fmul(grad_weighted, silu), b.fmul(a, weight), b.fmul(grad, a)


def total(b: Any, floats: Any) -> Any:
    """The sum of 16 float32."""
    return call(b, "llvm.vector.reduce.fadd.v16f32", FLOAT, FLOAT(0.0), floats, flags=("reassoc",))


def load_bfloat16(b: Any, address: Any) -> Any:
    """16 numbers as float32."""
    shorts = load(b, SHORTS, address)
    return b.bitcast(b.shl(b.zext(shorts, INTS), constant(INTS, 16)), FLOATS)


def store_bfloat16(b: Any, floats: Any, address: Any) -> None:
    """The nearest bfloat16 of 16 float32, to even; NaN stays NaN."""
    bits = b.bitcast(floats, INTS)
    odd = b.and_(b.lshr(bits, constant(INTS, 16)), constant(INTS, 1))
    rounded = b.add(bits, b.add(odd, constant(INTS, 0x7FFF)))
    rounded = b.select(b.fcmp_unordered("uno", floats, floats), constant(INTS, 0x7FC00000), rounded)
    store(b, b.trunc(b.lshr(rounded, constant(INTS, 16)), SHORTS), address)
