"""Which program multiplies which rows: tiles of rows that never cross an expert, listed on the device."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gatelab.kernels.triton._expert_configs import block_rows
from gatelab.kernels.triton._launch import launch

_BLOCK = 32
# So many tiles of rows are multiplied by the same columns before the next columns come: with 128 rows and 256 columns a
# tile, 132 programs then read 1024 rows and 4096 columns, which the L2 cache holds.
_GROUP = tl.constexpr(8)


class Tiles(NamedTuple):
    """`expert` and `first_row` (int32) of each tile; only the first `number` entries are filled."""

    expert: Tensor
    first_row: Tensor
    number: Tensor
    offsets: Tensor
    block_rows: int

    @property
    def most(self) -> int:
        """No fewer than there are."""
        return self.expert.shape[0]

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What a kernel takes in order to `find` its tiles."""
        return self.expert, self.first_row, self.number, self.offsets


def tiles_of(expert_offsets: Tensor, rows: int) -> Tiles:
    """The tiles of `rows` assignments or fewer, without a synchronisation: E experts add at most a tile each."""
    E = expert_offsets.shape[0] - 1
    size = block_rows(rows, E)
    expert, first_row = expert_offsets.new_empty(2, triton.cdiv(rows, size) + E, dtype=torch.int32)
    number = expert_offsets.new_empty(1, dtype=torch.int32)
    launch(
        _list_tiles,
        triton.cdiv(expert.shape[0], _BLOCK),
        expert_offsets,
        expert,
        first_row,
        number,
        E,
        BLOCK_M=size,
        BLOCK_E=triton.next_power_of_2(E),
        BLOCK=_BLOCK,
        elements=_BLOCK * triton.next_power_of_2(E),
    )
    return Tiles(expert, first_row, number, expert_offsets, size)


@triton.jit
def _list_tiles(
    offsets_ptr,
    expert_ptr,
    first_row_ptr,
    number_ptr,
    E,
    BLOCK_M: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK: tl.constexpr,
):
    e = tl.arange(0, BLOCK_E)
    start = tl.load(offsets_ptr + e, mask=e < E, other=0).to(tl.int32)
    stop = tl.load(offsets_ptr + e + 1, mask=e < E, other=0).to(tl.int32)
    tiles = (stop - start + BLOCK_M - 1) // BLOCK_M
    ends = tl.cumsum(tiles, 0)
    count = tl.sum(tiles, 0)
    tile = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    past = ends[None, :] <= tile[:, None]
    expert = tl.sum(tl.where(past, 1, 0), 1)
    earlier = tl.sum(tl.where(past, tiles[None, :], 0), 1)
    first_row = tl.load(offsets_ptr + expert, mask=tile < count, other=0).to(tl.int32) + (tile - earlier) * BLOCK_M
    tl.store(expert_ptr + tile, expert, mask=tile < count)
    tl.store(first_row_ptr + tile, first_row, mask=tile < count)
    if tl.program_id(0) == 0:
        tl.store(number_ptr, count)


@triton.jit
def in_groups(tile, row_tiles, column_tiles):
    """The (row tile, column tile) that comes as number `tile`."""
    in_group = _GROUP * column_tiles
    first = tile // in_group * _GROUP
    height = tl.minimum(row_tiles - first, _GROUP)
    return first + tile % in_group % height, tile % in_group // height


@triton.jit
def find(tile, row_tiles, column_tiles, expert_ptr, first_row_ptr, offsets_ptr, BLOCK_M: tl.constexpr):
    """The expert (int64), the rows, which of them are the expert's, and the column tile, of a tile in L2's order.

    Rows beyond the expert's are its last one again: nobody stores what becomes of them.
    """
    row_tile, column_tile = in_groups(tile, row_tiles, column_tiles)
    expert = tl.load(expert_ptr + row_tile).to(tl.int64)
    stop = tl.load(offsets_ptr + expert + 1).to(tl.int32)
    rows = tl.load(first_row_ptr + row_tile) + tl.arange(0, BLOCK_M)
    return expert, tl.minimum(rows, stop - 1).to(tl.int64), rows < stop, column_tile
