"""Products of bfloat16 in tiles of 32 × 32 results by AMX, in numba (extra `fast`).

A register holds 16 rows of 32 terms of the first factor, or 16 pairs of terms of 16 rows of the second, packed as in
`_bfloat16_tiles`, or 16 × 16 float32 sums. The first factor is read as it is, row after row.

Matrices are passed by address and contiguous; their sizes, but for numbers of tokens, are multiples of 32.
"""

import ctypes
import functools
import sys
from typing import Any

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import int64, njit, void

from gatelab.kernels.cpu._emit import LANES, LONG, call, inline

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
def configure(context: Any, before: Any) -> Any:
    """All eight registers as 16 rows of 64 bytes. Keeps at `before` (64 bytes) how they were: oneDNN has them too."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        call(b, "llvm.x86.sttilecfg", _VOID, b.inttoptr(arguments[0], _POINTER))
        config = ir.GlobalVariable(b.module, ir.ArrayType(_BYTE, 64), b.module.get_unique_name("tiles"))
        config.linkage, config.global_constant = "internal", True
        numbers = [1] + [0] * 15 + [64, 0] * 8 + [0] * 16 + [16] * 8 + [0] * 8  # palette; bytes of a row; rows
        contents: Any = ir.Constant(config.value_type, bytearray(numbers))
        config.initializer = contents
        call(b, "llvm.x86.ldtilecfg", _VOID, b.bitcast(config, _POINTER))

    return void(int64), emit


@inline
def restore(context: Any, before: Any) -> Any:
    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        call(b, "llvm.x86.ldtilecfg", _VOID, b.inttoptr(arguments[0], _POINTER))

    return void(int64), emit


@inline
def _clear(context: Any) -> Any:
    """All sums are 0."""

    def emit(_: Any, b: Any, __: Any, ___: Any) -> Any:
        for r in range(2):
            for c in range(2):
                call(b, "llvm.x86.tilezero", _VOID, _sums(r, c))

    return void(), emit


def _add(c: int) -> Any:
    """Adds what 32 terms of 16 and 16 rows, `stride` bytes apart, and of a block of 16 columns come to."""

    @inline
    def add(_: Any, first: Any, second: Any, stride: Any, block: Any) -> Any:
        def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
            *rows, stride, block = arguments
            _load(b, _columns(c), block, LONG(64), "t1")
            for r in range(2):
                if c == 0:  # the other finds them there
                    _load(b, _rows(r), rows[r], stride)
                call(b, "llvm.x86.tdpbf16ps", _VOID, _sums(r, c), _rows(r), _columns(c))

        return void(*[int64] * 4), emit

    return add


_add_first, _add_second = _add(0), _add(1)


@inline
def _store(context: Any, results: Any) -> Any:
    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        for r in range(2):
            for c in range(2):
                place = b.inttoptr(b.add(arguments[0], LONG(64 * c + 128 * LANES * r)), _POINTER)
                call(b, "llvm.x86.tilestored64", _VOID, _sums(r, c), place, LONG(128))

    return void(int64), emit


def _sums(r: int, c: int) -> ir.Constant:
    return _tile(2 * r + c)


def _rows(r: int) -> ir.Constant:
    return _tile(4 + r)


def _columns(c: int) -> ir.Constant:
    return _tile(6 + c)


def _load(b: Any, tile: ir.Constant, address: Any, stride: Any, hint: str = "") -> None:
    """What is loaded with the hint `t1` does not drive what is loaded without from the first cache."""
    call(b, f"llvm.x86.tileloadd{hint}64", _VOID, tile, b.inttoptr(address, _POINTER), stride)


def multiply(finish: Any) -> Any:
    """results (32, ≤ 32) float32 = 16 and 16 rows, `stride` bytes apart, · two blocksᵀ, and what follows another one.

    `finish(unit, job)` is a part of that; the first entry of `job` is how many there are. The tiles leave the vector
    units free, and what they store cannot be read at once.
    """

    @njit(nogil=True)
    def multiply(first, second, stride, columns, count, terms, results, job):
        _clear()
        unit, steps, todo = 0, terms // _TERMS, job[0]
        for s in range(steps):
            upper, lower, block = first + 64 * s, second + 64 * s, columns + 1024 * s
            _add_first(upper, lower, stride, block)
            if count > LANES:
                _add_second(upper, lower, stride, block + 32 * terms)
            while unit * steps < (s + 1) * todo:
                finish(unit, job)
                unit += 1
        _store(results)

    return multiply
