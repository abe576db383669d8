"""Sorting assignments by expert: a stable counting sort."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gatelab.kernels.triton._launch import launch

_BLOCK = 128  # each entry is compared with all of its block


def group_by_expert(ids_TJ: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """See `gatelab.kernels.group_by_expert`.

    Blocks of 128 entries are counted by expert; one running sum over the counts, expert by expert and block by block,
    says where each block's share of an expert ends; an entry's place is that end less its followers in the block.
    Nothing is added in an order that could vary. Memory: 4·(E+1)/128 bytes an entry for the counts.
    """
    return _group_by_expert(ids_TJ, num_experts)


@torch.library.custom_op("gatelab::group_by_expert_triton", mutates_args=())
def _group_by_expert(ids_TJ: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    entries = ids_TJ.numel()
    blocks = triton.cdiv(entries, _BLOCK)
    followers = ids_TJ.new_empty(entries, dtype=torch.int32)
    counts = ids_TJ.new_zeros(num_experts + 1, blocks, dtype=torch.int32)  # last those without an expert
    order = ids_TJ.new_empty(entries, dtype=torch.int64)
    offsets = ids_TJ.new_zeros(num_experts + 1, dtype=torch.int64)
    if entries:
        flat = ids_TJ.contiguous()
        launch(_count, blocks, flat, followers, counts, entries, num_experts, BLOCK=_BLOCK, elements=16 * _BLOCK)
        ends = counts.flatten().cumsum(0, dtype=torch.int32).view_as(counts)
        launch(_place, blocks, flat, followers, ends, order, entries, num_experts, BLOCK=_BLOCK, elements=_BLOCK)
        offsets[1:] = ends[:-1, -1]
    return order, offsets


@_group_by_expert.register_fake
def _(ids_TJ: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    return ids_TJ.new_empty(ids_TJ.numel(), dtype=torch.int64), ids_TJ.new_empty(num_experts + 1, dtype=torch.int64)


@triton.jit
def _count(ids_ptr, followers_ptr, counts_ptr, num_entries, num_experts, BLOCK: tl.constexpr):
    """How many later entries of the block have the same expert, and how many there are of each."""
    block, within = tl.program_id(0), tl.arange(0, BLOCK)
    entries = block * BLOCK + within
    exists = entries < num_entries
    ids = tl.load(ids_ptr + entries, mask=exists, other=0).to(tl.int32)
    keys = tl.where(exists, tl.where(ids < 0, num_experts, ids), -1)
    # Reduced along the first axis, a thread has whole columns; along the second, every row would be a warp's reduction.
    same = keys[:, None] == keys[None, :]
    followers = tl.sum((same & (within[:, None] > within[None, :])).to(tl.int32), axis=0)
    leaders = tl.sum((same & (within[:, None] < within[None, :])).to(tl.int32), axis=0)
    tl.store(followers_ptr + entries, followers, mask=exists)
    cells = keys.to(tl.int64) * tl.num_programs(0) + block
    tl.store(counts_ptr + cells, followers + 1, mask=exists & (leaders == 0))


@triton.jit
def _place(ids_ptr, followers_ptr, ends_ptr, order_ptr, num_entries, num_experts, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    entries = block * BLOCK + tl.arange(0, BLOCK)
    exists = entries < num_entries
    ids = tl.load(ids_ptr + entries, mask=exists, other=0)
    keys = tl.where(ids < 0, num_experts, ids).to(tl.int64)
    ends = tl.load(ends_ptr + keys * tl.num_programs(0) + block, mask=exists, other=1)
    followers = tl.load(followers_ptr + entries, mask=exists, other=0)
    tl.store(order_ptr + ends - 1 - followers, entries.to(tl.int64), mask=exists)
