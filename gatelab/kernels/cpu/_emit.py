"""What the numba kernels of the experts are made of: vectors of 16 float32 in LLVM's language, and how they are kept.

Each function writes instructions with `b`, an `llvmlite.ir.IRBuilder`. Matrices are passed to kernels by address.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llvmlite import ir
from numba import njit
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
LONG, INT, FLOAT = ir.IntType(64), ir.IntType(32), ir.FloatType()
FLOATS, INTS, SHORTS = (ir.VectorType(kind, LANES) for kind in (FLOAT, INT, ir.IntType(16)))
_LOG2_E = 1.4426950408889634
_POWERS = [0.6931471805599453**i for i in range(8)]
_FACTORIALS = (1, 1, 2, 6, 24, 120, 720, 5040)
_NAMES = ("_emit", "_bfloat16_tiles", "_bfloat16_blocks", "_bfloat16_gradients", "_few_rows", "_swiglu_gradients")
_SOURCES = [Path(__file__).with_name(f"{name}.py") for name in _NAMES]
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


def call(b: Any, name: str, result: Any, *arguments: Any, flags: tuple[str, ...] = ()) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), arguments, fastmath=flags)


def constant(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [value] * LANES)


def splat(b: Any, scalar: Any) -> Any:
    undefined = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    return b.shuffle_vector(b.insert_element(undefined, scalar, INT(0)), undefined, constant(INTS, 0))


def sigmoid(b: Any, gate: Any) -> Any:
    """1 / (1 + 2^(−gate·log2 e)), the power of the rest after rounding by its series: Σ (r·ln 2)^i / i!, |r| ≤ 1/2."""
    power = b.fmul(gate, constant(FLOATS, -_LOG2_E))
    for name, limit in (("minnum", 127.0), ("maxnum", -127.0)):  # of a float32's exponent
        power = call(b, f"llvm.{name}.v16f32", FLOATS, power, constant(FLOATS, limit))
    whole = call(b, "llvm.rint.v16f32", FLOATS, power)
    rest, series = b.fsub(power, whole), constant(FLOATS, 0.0)
    for ln2_to_i, factorial in zip(reversed(_POWERS), reversed(_FACTORIALS), strict=True):
        series = call(b, "llvm.fma.v16f32", FLOATS, series, rest, constant(FLOATS, ln2_to_i / factorial))
    exponent = b.shl(b.fptosi(whole, INTS), constant(INTS, 23))
    exponential = b.bitcast(b.add(b.bitcast(series, INTS), exponent), FLOATS)
    return b.fdiv(constant(FLOATS, 1.0), b.fadd(exponential, constant(FLOATS, 1.0)))


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
