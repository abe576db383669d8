"""Products of float32 in tiles of 14 × 32 results, in numba (extra `fast`), for processors with AVX-512.

The first factor is packed into *tiles* of 14 of its rows: their first terms, then their second ones, 64 bytes at a time
(14 numbers and two that nobody uses). The second one is packed into a *panel* of 32 of its rows in the same way, which
meets all tiles; what follows a product is done with its results while they are in the first cache.

Matrices are passed by address and contiguous; their sizes, but for numbers of tokens, are multiples of 32.
"""

from typing import Any

from llvmlite import ir
from numba import int64, njit, void

from gatelab.kernels.cpu._bfloat16_tiles import read, transposed, write
from gatelab.kernels.cpu._emit import (
    FLOAT,
    FLOATS,
    INT,
    LANES,
    LONG,
    call,
    constant,
    inline,
    load,
    splat,
    store,
    stream,
)

ROWS = 14  # times two vectors of results, two of the panel and one of the tile: 31 of the 32 registers
PANEL = 2 * LANES
AT_ONCE = 4  # tiles: with more, those some KB apart drive each other out of the first cache
_AHEAD = 8  # terms: what the second cache takes to answer
_FIRST, _SECOND = 3, 2  # caches, as LLVM counts
_FRACTION = 16  # bits of a step


def _dot_products(rows: int) -> Any:
    @inline
    def multiply(_: Any, tile: Any, panel: Any, terms: Any, results: Any, ahead: Any, stride: Any, step: Any) -> Any:
        return void(*[int64] * 7), lambda _, b, __, arguments: _emit_products(b, rows, *arguments)

    return multiply


def _emit_products(
    b: Any, rows: int, tile: Any, panel: Any, terms: Any, results: Any, ahead: Any, stride: Any, step: Any
) -> None:
    before, loop, after = b.block, b.append_basic_block("terms"), b.append_basic_block("done")
    b.branch(loop)
    b.position_at_end(loop)
    first, second, left, place = (b.phi(LONG) for _ in range(4))
    old = [b.phi(FLOATS) for _ in range(2 * rows)]
    for address, size in ((first, 64), (second, 128), (b.add(second, LONG(64)), 128)):
        _prefetch(b, b.add(address, LONG(size * _AHEAD)), into=_FIRST)
    following = b.add(ahead, b.mul(b.lshr(place, LONG(_FRACTION)), stride))
    for offset in (0, 64):
        _prefetch(b, b.add(following, LONG(offset)), into=_SECOND)
    columns, sums = [load(b, FLOATS, second, offset) for offset in (0, 64)], []
    for r in range(rows):
        x = splat(b, load(b, FLOAT, first, 4 * r))
        sums += [call(b, "llvm.fma.v16f32", FLOATS, x, c, old[2 * r + i]) for i, c in enumerate(columns)]
    fewer = b.sub(left, LONG(1))
    steps = [(left, terms, fewer), (place, LONG(0), b.add(place, step))]
    steps += [(first, tile, b.add(first, LONG(64))), (second, panel, b.add(second, LONG(128)))]
    steps += [(o, constant(FLOATS, 0.0), s) for o, s in zip(old, sums, strict=True)]
    for phi, start, following in steps:
        phi.add_incoming(start, before)
        phi.add_incoming(following, loop)
    b.cbranch(b.icmp_signed("!=", fewer, LONG(0)), loop, after)
    b.position_at_end(after)
    for i, total in enumerate(sums):
        store(b, total, results, 64 * i)


_all_rows, _twelve_rows, _eight_rows, _four_rows = map(_dot_products, (ROWS, 12, 8, 4))


@njit(nogil=True)
def dot_products(rows, tile, panel, terms, results, ahead, stride, step):
    """results (rows, 32) = the first rows of a tile · panelᵀ. Writes up to three rows more.

    Asks at the same time for pieces of 128 bytes, `stride` apart from `ahead` on, that come `step` further with every
    term: asked for at once, they would keep what the product waits for from coming.
    """
    if rows > 12:
        _all_rows(tile, panel, terms, results, ahead, stride, step)
    elif rows > 8:
        _twelve_rows(tile, panel, terms, results, ahead, stride, step)
    elif rows > 4:
        _eight_rows(tile, panel, terms, results, ahead, stride, step)
    else:
        _four_rows(tile, panel, terms, results, ahead, stride, step)


@njit(nogil=True)
def step_of(pieces, rows, n, terms):
    """For so many of n rows to ask for their share of all pieces while the terms of a product are added."""
    return (pieces * rows << _FRACTION) // (n * terms) + 1


def _prefetch(b: Any, address: Any, into: int, to_write: int = 0) -> None:
    of_data = INT(1)
    pointer = b.inttoptr(address, ir.IntType(8).as_pointer())
    call(b, "llvm.prefetch.p0", ir.VoidType(), pointer, INT(to_write), INT(into), of_data)


@inline
def _prefetch_to_write(context: Any, address: Any) -> Any:
    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        _prefetch(b, arguments[0], into=_FIRST, to_write=1)

    return void(int64), emit


@njit(nogil=True)
def expect(out, row_length, n, bytes_of_row):
    """Asks for what will be written: the first bytes of n rows. Otherwise every line is waited for."""
    for r in range(n):
        for line in range(0, bytes_of_row, 64):
            _prefetch_to_write(out + 4 * row_length * r + line)


@inline
def _transpose(context: Any, addresses: Any, offset: Any, target: Any, stride: Any) -> Any:
    """16 terms, from `offset` on, of the 16 rows at `addresses`."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        addresses, offset, target, stride = arguments
        rows = [load(b, FLOATS, b.add(load(b, LONG, addresses, 8 * i), offset)) for i in range(LANES)]
        for row in transposed(b, rows):
            store(b, row, target)
            target = b.add(target, stride)

    return void(int64, int64, int64, int64), emit


@inline
def stream_half(context: Any, source: Any, target: Any) -> Any:
    """16 numbers, past the caches."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        stream(b, load(b, FLOATS, arguments[0]), arguments[1])

    return void(int64, int64), emit


@inline
def copy_half(context: Any, source: Any, target: Any) -> Any:
    """16 numbers."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        store(b, load(b, FLOATS, arguments[0]), arguments[1])

    return void(int64, int64), emit


@inline
def add_row(context: Any, results: Any, sums: Any) -> Any:
    """Adds 32 results to the sums."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        for offset in (0, 64):
            result, earlier = (load(b, FLOATS, address, offset) for address in arguments)
            store(b, b.fadd(result, earlier), arguments[1], offset)

    return void(int64, int64), emit


@njit(nogil=True)
def copy_row(source, target):
    """32 numbers."""
    copy_half(source, target)
    copy_half(source + 64, target + 64)


@njit(nogil=True)
def pack_rows(matrix, tokens, n, row_length, terms, packed, addresses):
    """Tiles of sums along the first terms of the rows `tokens` (an address of int64; 0: all)."""
    for start in range(0, n, ROWS):
        for r in range(LANES):
            i = min(start + r, n - 1)
            write(addresses + 8 * r, matrix + 4 * row_length * (read(tokens + 8 * i) if tokens else i))
        for t in range(0, terms, LANES):
            _transpose(addresses, 4 * t, tile_of_rows(packed, start, terms) + 64 * t, 64)


@njit(nogil=True)
def tile_of_rows(packed, start, terms):
    """The address of the rows from `start` on, which is a multiple of `ROWS`."""
    return packed + 64 * (start // ROWS) * terms


@njit(nogil=True)
def pack_panel(upper, lower, row_length, terms, panel, addresses):
    """Sums along the first terms of 16 rows and 16 more."""
    for half in range(2):
        for r in range(LANES):
            write(addresses + 8 * r, (lower if half else upper) + 4 * row_length * r)
        for t in range(0, terms, LANES):
            _transpose(addresses, 4 * t, panel + 64 * half + 128 * t, 128)


@njit(nogil=True)
def pack_columns(matrix, tokens, n, row_length, columns, packed):
    """Tiles of sums down the first columns of the rows `tokens` (an address of int64; 0: all)."""
    for first in range(0, columns, AT_ONCE * ROWS):
        for i in range(n):
            row = matrix + 4 * row_length * (read(tokens + 8 * i) if tokens else i)
            for start in range(first, min(first + AT_ONCE * ROWS, columns), ROWS):
                copy_half(row + 4 * min(start, columns - LANES), packed + 64 * (start // ROWS * n + i))


@njit(nogil=True)
def tile_of_columns(packed, start, n, columns):
    """The address of the columns from `start` on. The last 16 were packed together, whichever are wanted."""
    return packed + 64 * (start // ROWS) * n + 4 * max(0, start - (columns - LANES))


@njit(nogil=True)
def copy_columns(matrix, tokens, n, row_length, panel):
    """A panel of sums down the first 32 columns of the rows `tokens` (an address of int64; 0: all)."""
    for i in range(n):
        copy_row(matrix + 4 * row_length * (read(tokens + 8 * i) if tokens else i), panel + 128 * i)


@njit(nogil=True)
def gather_panels(matrix, tokens, n, columns, panels):
    """All panels of sums down the columns of the rows `tokens`, one behind the other."""
    for i in range(n):
        row = matrix + 4 * columns * read(tokens + 8 * i)
        for c in range(0, columns, PANEL):
            copy_row(row + 4 * c, panels + 4 * (n * c + PANEL * i))
