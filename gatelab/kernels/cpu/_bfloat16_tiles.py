"""Products of bfloat16 in tiles of 8 × 32 results, in numba (extra `fast`), for processors with AVX512_BF16.

The instruction adds the products of two neighbouring terms of a sum, a *pair* of 32 bits. Both factors are packed into
*blocks* of 16 rows: the blocks follow each other, and a block is its rows' first pairs, then their second ones, 64
bytes at a time. Two blocks of the second factor (a *panel*, which fits in the first cache) meet all rows of the first,
and what follows a product is done with its float32 results while they are in the first cache.

Matrices are passed by address and contiguous; their sizes, but for numbers of tokens, are multiples of 32.
"""

from typing import Any

from llvmlite import ir
from numba import int64, njit, void

from gatelab.kernels.cpu._emit import (
    FLOATS,
    INT,
    INTS,
    LANES,
    LONG,
    SHORTS,
    call,
    constant,
    inline,
    load,
    splat,
    store,
)

ROWS = 8  # times two vectors of results: 16 of the 32 registers, enough to hide how long one instruction takes
PANEL = 2 * LANES
_AT_ONCE = 4 * LANES  # columns: with more, blocks some KB apart drive each other out of the first cache
_ALL_SHORTS = ir.VectorType(ir.IntType(16), PANEL)


@inline
def dot_products(context: Any, rows: Any, first: Any, second: Any, pairs: Any, results: Any) -> Any:
    """results (ROWS, 32) float32 = half a block of rows · two blocksᵀ."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        *matrices, pairs, results = arguments
        before, loop, after = b.block, b.append_basic_block("pairs"), b.append_basic_block("done")
        b.branch(loop)
        b.position_at_end(loop)
        addresses = [b.phi(LONG) for _ in matrices]
        left, old = b.phi(LONG), [b.phi(FLOATS) for _ in range(2 * ROWS)]
        columns, sums = [load(b, INTS, address) for address in addresses[1:]], []
        for r in range(ROWS):
            x = splat(b, load(b, INT, addresses[0], 4 * r))
            for i, column in enumerate(columns, 2 * r):
                sums.append(call(b, "llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, old[i], column, x))
        fewer = b.sub(left, LONG(1))
        steps = [(left, pairs, fewer)]
        steps += [(a, f, b.add(a, LONG(64))) for a, f in zip(addresses, matrices, strict=True)]
        steps += [(o, constant(FLOATS, 0.0), s) for o, s in zip(old, sums, strict=True)]
        for phi, start, following in steps:
            phi.add_incoming(start, before)
            phi.add_incoming(following, loop)
        b.cbranch(b.icmp_signed("!=", fewer, LONG(0)), loop, after)
        b.position_at_end(after)
        for i, total in enumerate(sums):
            store(b, total, results, 64 * i)

    return void(int64, int64, int64, int64, int64), emit


@inline
def transpose(context: Any, addresses: Any, offset: Any, target: Any) -> Any:
    """16 pairs of terms, from `offset` on, of the 16 rows at `addresses`."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        addresses, offset, target = arguments
        rows = [load(b, INTS, b.add(load(b, LONG, addresses, 8 * i), offset)) for i in range(LANES)]
        for i, row in enumerate(transposed(b, rows)):
            store(b, row, target, 64 * i)

    return void(int64, int64, int64), emit


def transposed(b: Any, rows: list[Any]) -> list[Any]:
    """16 vectors of 16 integers."""
    rows = list(rows)
    for d in (8, 4, 2, 1):  # swaps the off-diagonal quarters of every 2d × 2d square
        low = ir.Constant(INTS, [LANES + (l ^ d) if l & d else l for l in range(LANES)])
        high = ir.Constant(INTS, [LANES + l if l & d else l | d for l in range(LANES)])
        for i in range(LANES):
            if not i & d:
                upper, lower = rows[i], rows[i + d]
                rows[i] = b.shuffle_vector(upper, lower, low)
                rows[i + d] = b.shuffle_vector(upper, lower, high)
    return rows


@inline
def _interleave(context: Any, upper: Any, lower: Any, target: Any) -> Any:
    """Pairs of 16 numbers and the 16 below them."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        upper, lower = (b.zext(load(b, SHORTS, address), INTS) for address in arguments[:2])
        store(b, b.or_(upper, b.shl(lower, constant(INTS, 16))), arguments[2])

    return void(int64, int64, int64), emit


@inline
def read(context: Any, address: Any) -> Any:
    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        return load(b, LONG, arguments[0])

    return int64(int64), emit


@inline
def write(context: Any, address: Any, value: Any) -> Any:
    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        store(b, arguments[1], arguments[0])

    return void(int64, int64), emit


@inline
def prefetch(context: Any, address: Any) -> Any:
    """Asks for the line at an address, which need not be one, into the second cache."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        pointer = b.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        to_read, into_second, of_data = INT(0), INT(2), INT(1)
        call(b, "llvm.prefetch.p0", ir.VoidType(), pointer, to_read, into_second, of_data)

    return void(int64), emit


def rounded(b: Any, floats: Any) -> Any:
    """16 float32 in bfloat16."""
    return call(b, "llvm.x86.avx512bf16.cvtneps2bf16.512", SHORTS, floats)


def rounded_pair(b: Any, lower: Any, upper: Any) -> Any:
    """Twice 16 float32 in bfloat16."""
    return call(b, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", _ALL_SHORTS, upper, lower)


@inline
def store_row(context: Any, results: Any, target: Any) -> Any:
    """32 results in bfloat16."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        results, target = arguments
        store(b, rounded_pair(b, load(b, FLOATS, results), load(b, FLOATS, results, 64)), target)

    return void(int64, int64), emit


@njit(nogil=True)
def pack_rows(matrix, tokens, n, terms, packed, addresses):
    """Sums along the rows `tokens` (an address of int64; 0: all). What fills the last block is arbitrary."""
    for start in range(0, n, LANES):
        for r in range(LANES):
            i = min(start + r, n - 1)
            write(addresses + 8 * r, matrix + 2 * terms * (read(tokens + 8 * i) if tokens else i))
        for t in range(0, terms, PANEL):
            transpose(addresses, 2 * t, packed + 2 * (start * terms + t * LANES))


@njit(nogil=True)
def pack_columns(matrix, tokens, n, pairs, row_length, columns, packed, zeros):
    """Sums down the first columns of the rows `tokens` (an address of int64; 0: all). What is missing is zeros."""
    for first in range(0, columns, _AT_ONCE):
        for p in range(pairs):
            upper = lower = zeros
            if 2 * p < n:
                upper = matrix + 2 * row_length * (read(tokens + 16 * p) if tokens else 2 * p)
            if 2 * p + 1 < n:
                lower = matrix + 2 * row_length * (read(tokens + 16 * p + 8) if tokens else 2 * p + 1)
            for c in range(first, min(first + _AT_ONCE, columns), LANES):
                _interleave(upper + 2 * c, lower + 2 * c, packed + 4 * (c * pairs + p * LANES))


@njit(nogil=True)
def tile_row(packed, start, pairs):
    """The address of rows from `start` on, which is a multiple of `ROWS`."""
    return packed + 4 * (start // LANES * LANES * pairs + start % LANES)


@njit(nogil=True)
def prefetch_rows(address, size, start, count, n):
    """Asks for what belongs to `count` rows from `start` on when `size` bytes are shared out to n rows."""
    for line in range(size * start // n // 64, size * min(start + count, n) // n // 64):
        prefetch(address + 64 * line)


@njit(nogil=True)
def prefetch_columns(matrix, tokens, length, row_length, start, count, n):
    """Asks for what belongs to `count` rows from `start` on when `length` pieces of 32 columns are shared out to n."""
    for i in range(length * start // n, min(length, length * (start + count) // n)):
        prefetch(matrix + 2 * row_length * (read(tokens + 8 * i) if tokens else i))
