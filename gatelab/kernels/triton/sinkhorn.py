"""Sinkhorn's scaling with one reading of the scores per iteration."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from gatelab.kernels.triton._launch import launch, rows_per_block

_MOST_SHARES = 256  # of the tokens, each summed over columns by one program; a function of the shape alone


def sinkhorn(scores: Tensor, *, iterations: int = 16, token_mask: Tensor | None = None) -> Tensor:
    """See `gatelab.kernels.sinkhorn`.

    Scaling a row takes nothing but the row, so the pass that scales the rows also sums its share of the columns; a
    second, small one puts the shares together, in their order. The marginals 1/T and 1/E are left out of the loop: a
    constant added to every row and taken from every column changes no plan, and the last columns sum to 1/E.
    """
    return _sinkhorn(scores, token_mask, iterations)


@torch.library.custom_op("gatelab::sinkhorn_triton", mutates_args=())
def _sinkhorn(scores: Tensor, token_mask: Tensor | None, iterations: int) -> Tensor:
    T, E = scores.shape
    plan = torch.empty_like(scores, memory_format=torch.contiguous_format)
    if T == 0:
        return plan
    scores, mask = scores.contiguous(), None if token_mask is None else token_mask.contiguous()
    block_T, block_E = rows_per_block(E), triton.next_power_of_2(E)
    blocks = triton.cdiv(T, block_T)
    blocks_each = triton.cdiv(blocks, _MOST_SHARES)
    shares = triton.cdiv(blocks, blocks_each)
    tiling = {"E": E, "BLOCK_T": block_T, "BLOCK_E": block_E, "elements": block_T * block_E}
    row, column = scores.new_empty(T), scores.new_zeros(E)
    top, total = scores.new_empty(2, shares, E)
    all_shares = triton.next_power_of_2(shares)
    few = min(block_E, rows_per_block(all_shares))
    for _ in range(iterations):
        launch(_scale_rows, shares, scores, mask, column, row, top, total, T, blocks_each, **tiling)
        merging = {"E": E, "SHARES": shares, "BLOCK_P": all_shares, "BLOCK_E": few, "elements": all_shares * few}
        launch(_scale_columns, triton.cdiv(E, few), top, total, column, **merging)
    launch(_plan, blocks, scores, mask, column - math.log(E), row, plan, T, **tiling)
    return plan


@_sinkhorn.register_fake
def _(scores: Tensor, token_mask: Tensor | None, iterations: int) -> Tensor:
    return torch.empty_like(scores, memory_format=torch.contiguous_format)


@triton.jit
def _load_scores(scores_ptr, mask_ptr, block, T, E: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr):
    """Tokens, whether they are real, and their scores; 0 at tokens that are not and at experts that do not exist."""
    tokens = block * BLOCK_T + tl.arange(0, BLOCK_T).to(tl.int64)
    real = tokens < T
    if mask_ptr is not None:
        real = tl.load(mask_ptr + tokens, mask=real, other=0) != 0
    experts = tl.arange(0, BLOCK_E)
    cells = tokens[:, None] * E + experts[None, :]
    return tokens, real, tl.load(scores_ptr + cells, mask=real[:, None] & (experts < E)[None, :], other=0.0)


@triton.jit
def _scale_rows(
    scores_ptr,
    mask_ptr,
    column_ptr,
    row_ptr,
    top_ptr,
    total_ptr,
    T,
    blocks_each,
    E: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """row = −logsumexp(scores + column), and the share's maximum and sum of exp(scores + row − maximum) per column."""
    experts = tl.arange(0, BLOCK_E)
    exists = experts < E
    column_E = tl.load(column_ptr + experts, mask=exists, other=0.0)
    top_E = tl.zeros_like(column_E) + float("-inf")
    total_E = tl.zeros_like(column_E)
    block = tl.program_id(0) * blocks_each
    end = block + blocks_each
    while block < end:
        tokens, real, scores_TE = _load_scores(scores_ptr, mask_ptr, block, T, E, BLOCK_T, BLOCK_E)
        x_TE = tl.where(exists[None, :], scores_TE + column_E[None, :], float("-inf"))
        most_T = tl.max(x_TE, axis=1)
        row_T = -(most_T + tl.log(tl.sum(tl.exp(x_TE - most_T[:, None]), axis=1)))
        row_T = tl.where(real, row_T, float("-inf"))
        tl.store(row_ptr + tokens, row_T, mask=tokens < T)
        y_TE = scores_TE + row_T[:, None]
        new_E = tl.maximum(top_E, tl.max(y_TE, axis=0))
        finite_E = tl.where(new_E == float("-inf"), 0.0, new_E)  # −inf − −inf is NaN
        total_E = total_E * tl.exp(top_E - finite_E) + tl.sum(tl.exp(y_TE - finite_E[None, :]), axis=0)
        top_E = new_E
        block += 1
    cells = tl.program_id(0) * E + experts
    tl.store(top_ptr + cells, top_E, mask=exists)
    tl.store(total_ptr + cells, total_E, mask=exists)


@triton.jit
def _scale_columns(
    top_ptr,
    total_ptr,
    column_ptr,
    E: tl.constexpr,
    SHARES: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """column = −logsumexp(scores + row), from all shares; 0 without a real token."""
    experts = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    shares = tl.arange(0, BLOCK_P)
    cells, exists = shares[:, None] * E + experts[None, :], (shares < SHARES)[:, None] & (experts < E)[None, :]
    top_PE = tl.load(top_ptr + cells, mask=exists, other=float("-inf"))
    top_E = tl.max(top_PE, axis=0)
    top_E = tl.where(top_E == float("-inf"), 0.0, top_E)
    total_PE = tl.load(total_ptr + cells, mask=exists, other=0.0) * tl.exp(top_PE - top_E[None, :])
    total_E = tl.sum(total_PE, axis=0)
    column_E = tl.where(total_E > 0, -(top_E + tl.log(tl.where(total_E > 0, total_E, 1.0))), 0.0)
    tl.store(column_ptr + experts, column_E, mask=experts < E)


@triton.jit
def _plan(
    scores_ptr,
    mask_ptr,
    column_ptr,
    row_ptr,
    plan_ptr,
    T,
    E: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    tokens, _, scores_TE = _load_scores(scores_ptr, mask_ptr, tl.program_id(0), T, E, BLOCK_T, BLOCK_E)
    experts = tl.arange(0, BLOCK_E)
    row_T = tl.load(row_ptr + tokens, mask=tokens < T, other=0.0)
    column_E = tl.load(column_ptr + experts, mask=experts < E, other=0.0)
    exists = (tokens < T)[:, None] & (experts < E)[None, :]
    tl.store(plan_ptr + tokens[:, None] * E + experts[None, :], scores_TE + row_T[:, None] + column_E, mask=exists)
