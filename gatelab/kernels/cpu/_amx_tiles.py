"""Products of bfloat16 in tiles of 32 × 32 results by AMX, in numba (extra `fast`).

A register holds 16 rows of 32 terms of the first factor, or 16 pairs of terms of 16 rows of the second, packed as in
`_bfloat16_tiles`, or 16 × 16 float32 sums. Denormals count as 0.
Ask `has_amx` before anything is run: Linux ends a process that uses the registers unasked.

Matrices are passed by address and contiguous; their sizes, but for numbers of tokens, are multiples of 32.
"""

import ctypes
import functools
import sys
from typing import Any

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import int64, njit, void

from gatelab.kernels.cpu._bfloat16_tiles import transposed
from gatelab.kernels.cpu._emit import INTS, LANES, LONG, call, inline, load, store

ROWS = COLUMNS = 2 * LANES
_TERMS = 32  # of a register's row
_BYTE, _VOID = ir.IntType(8), ir.VoidType()
_POINTER = _BYTE.as_pointer()
_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18  # Linux on x86-64, and its name of the registers' contents


@functools.cache
def has_amx() -> bool:
    """Whether this processor has AMX for bfloat16, and Linux lets this process use it."""
    features = get_host_cpu_features()
    if not (features.get("amx-bf16") and features.get("avx512bf16")) or not sys.platform.startswith("linux"):
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST, _TILE_DATA) == 0


def _tile(number: int) -> ir.Constant:
    return ir.Constant(_BYTE, number)


@inline
def configure(context: Any) -> Any:
    """All eight registers as 16 rows of 64 bytes, until `release`."""

    def emit(_: Any, b: Any, __: Any, ___: Any) -> Any:
        config = ir.GlobalVariable(b.module, ir.ArrayType(_BYTE, 64), b.module.get_unique_name("tiles"))
        config.linkage, config.global_constant = "internal", True
        numbers = [1] + [0] * 15 + [64, 0] * 8 + [0] * 16 + [16] * 8 + [0] * 8  # palette; bytes of a row; rows
        contents: Any = ir.Constant(config.value_type, bytearray(numbers))
        config.initializer = contents
        call(b, "llvm.x86.ldtilecfg", _VOID, b.bitcast(config, _POINTER))

    return void(), emit


@inline
def release(context: Any) -> Any:
    def emit(_: Any, b: Any, __: Any, ___: Any) -> Any:
        call(b, "llvm.x86.tilerelease", _VOID)

    return void(), emit


@inline
def _clear(context: Any) -> Any:
    """All sums are 0."""

    def emit(_: Any, b: Any, __: Any, ___: Any) -> Any:
        for r in range(2):
            for c in range(2):
                call(b, "llvm.x86.tilezero", _VOID, _sums(r, c))

    return void(), emit


def _add(i: int, rows_are_streamed: bool) -> Any:
    """Adds what 32 terms of two blocks of one factor and of the i-th of the other come to."""
    kept, streamed = (_columns, _rows) if rows_are_streamed else (_rows, _columns)

    @inline
    def add(_: Any, first: Any, second: Any, stride: Any, other: Any, other_stride: Any) -> Any:
        def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
            first, second, stride, other, other_stride = arguments
            _load(b, streamed(i), other, other_stride, "t1")
            for k, block in enumerate((first, second)):
                if i == 0:  # the other time they are there
                    _load(b, kept(k), block, stride)
                r, c = (i, k) if rows_are_streamed else (k, i)
                call(b, "llvm.x86.tdpbf16ps", _VOID, _sums(r, c), _rows(r), _columns(c))

        return void(*[int64] * 5), emit

    return add


@inline
def _store(context: Any, results: Any, length: Any) -> Any:
    """To rows of so many bytes."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        results, length = arguments
        for r in range(2):
            for c in range(2):
                place = b.add(b.add(results, b.mul(length, LONG(LANES * r))), LONG(64 * c))
                call(b, "llvm.x86.tilestored64", _VOID, _sums(r, c), b.inttoptr(place, _POINTER), length)

    return void(int64, int64), emit


def _sums(r: int, c: int) -> ir.Constant:
    return _tile(2 * r + c)


def _rows(r: int) -> ir.Constant:
    return _tile(4 + r)


def _columns(c: int) -> ir.Constant:
    return _tile(6 + c)


def _load(b: Any, tile: ir.Constant, address: Any, stride: Any, hint: str = "") -> None:
    """What is loaded with the hint `t1` does not drive what is loaded without from the first cache."""
    call(b, f"llvm.x86.tileloadd{hint}64", _VOID, tile, b.inttoptr(address, _POINTER), stride)


def multiply(finish: Any, rows_are_streamed: bool) -> Any:
    """`multiply_into` with results (32, 32)."""
    into = multiply_into(finish, rows_are_streamed)

    @njit(nogil=True)
    def multiply(kept, streamed, count, terms, results, job):
        into(kept, streamed, count, terms, results, 4 * COLUMNS, job)

    return multiply


def multiply_into(finish: Any, rows_are_streamed: bool) -> Any:
    """The product of two factors in float32 to 32 rows of `length` bytes, and meanwhile what follows another product.

    A factor is two blocks: their addresses, bytes from row to row and from 32 terms to the next. The one that is `kept`
    stays in the first cache while others meet it; of the `streamed` one only `count` rows or columns are wanted.
    `finish(unit, job)` is a part of what follows; the first entry of `job` is how many there are. The tiles leave the
    vector units free, and what they store cannot be read at once.
    """
    add_first, add_second = _add(0, rows_are_streamed), _add(1, rows_are_streamed)

    @njit(nogil=True)
    def multiply(kept, streamed, count, terms, results, length, job):
        _clear()
        first, second, stride, step = kept
        other, another, other_stride, other_step = streamed
        unit, steps, todo = 0, terms // _TERMS, job[0]
        for s in range(steps):
            add_first(first, second, stride, other, other_stride)
            if count > LANES:
                add_second(first, second, stride, another, other_stride)
            first, second, other, another = first + step, second + step, other + other_step, another + other_step
            while unit * steps < (s + 1) * todo:
                finish(unit, job)
                unit += 1
        _store(results, length)

    return multiply


@njit(nogil=True)
def rows_at(address, length):
    """A factor that is read as it lies, in rows of so many bytes."""
    return address, address + LANES * length, length, 2 * _TERMS


@njit(nogil=True)
def packed_at(address, terms):
    """A factor that is packed."""
    return address, address + 2 * LANES * terms, 64, 64 * LANES


@inline
def _turn_tile(context: Any, tile: Any) -> Any:
    """16 × 16 pairs, in place."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        rows = [load(b, INTS, arguments[0], 64 * r) for r in range(LANES)]
        for r, row in enumerate(transposed(b, rows)):
            store(b, row, arguments[0], 64 * r)

    return void(int64), emit


@njit(nogil=True)
def turn(packed, length):
    """Make columns, packed, the packed rows of a first factor; `length` bytes."""
    for tile in range(packed, packed + length, 64 * LANES):
        _turn_tile(tile)


@inline
def _copy(context: Any, source: Any, target: Any) -> Any:
    """64 bytes."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        store(b, load(b, INTS, arguments[0]), arguments[1])

    return void(int64, int64), emit


@njit(nogil=True)
def copy_row(source, target, length):
    """A multiple of 64 bytes."""
    for place in range(0, length, 64):
        _copy(source + place, target + place)
