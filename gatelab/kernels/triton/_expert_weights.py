"""Gradients of the experts' parameters: sums over each expert's rows, in their order; an expert without rows gets 0."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from gatelab.kernels.triton._expert_arithmetic import dot, rounded
from gatelab.kernels.triton._expert_configs import precision, tuned_weights
from gatelab.kernels.triton._expert_tiles import in_groups
from gatelab.kernels.triton._launch import launch

_COLUMNS, _ROWS = 128, 32


@tuned_weights()
@triton.jit
def _outer_products(
    a_ptr,
    a_index_ptr,
    b_ptr,
    b_index_ptr,
    weight_ptr,
    c_ptr,
    offsets_ptr,
    M,
    N,
    stride_ar,
    stride_am,
    stride_br,
    stride_bn,
    GATHER_A: tl.constexpr,
    WEIGHTED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row_tiles, column_tiles = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    e = tl.program_id(0) // (row_tiles * column_tiles)
    row_tile, column_tile = in_groups(tl.program_id(0) % (row_tiles * column_tiles), row_tiles, column_tiles)
    m = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    n = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    stop = tl.load(offsets_ptr + e + 1).to(tl.int32)
    first = tl.load(offsets_ptr + e).to(tl.int32)
    # An index loaded in the iteration that uses it would cost the pipeline a stage of both matrices.
    index_ptr = a_index_ptr if GATHER_A else b_index_ptr
    index = tl.load(index_ptr + first + k, mask=first + k < stop, other=0)
    c = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(first, stop, BLOCK_K):
        rows = start + k
        live = rows < stop
        a_rows = index if GATHER_A else rows.to(tl.int64)
        b_rows = rows.to(tl.int64) if GATHER_A else index
        index = tl.load(index_ptr + rows + BLOCK_K, mask=rows + BLOCK_K < stop, other=0)
        a_ptrs = a_ptr + a_rows[:, None] * stride_ar + m[None, :] * stride_am
        b_ptrs = b_ptr + b_rows[:, None] * stride_br + n[None, :] * stride_bn
        a = tl.load(a_ptrs, mask=live[:, None] & (m[None, :] < M), other=0.0)
        b = tl.load(b_ptrs, mask=live[:, None] & (n[None, :] < N), other=0.0)
        if WEIGHTED:
            weight = tl.load(weight_ptr + rows, mask=live, other=0.0).to(tl.float32)
            b = rounded(b.to(tl.float32) * weight[:, None], b_ptr.dtype.element_ty)
        c = dot(tl.trans(a), b, c, PRECISION)
    c_ptrs = c_ptr + (e.to(tl.int64) * M + m[:, None]) * N + n[None, :]
    tl.store(c_ptrs, rounded(c, c_ptr.dtype.element_ty), mask=(m[:, None] < M) & (n[None, :] < N))


def outer_products(
    a: Tensor, a_index: Tensor | None, b: Tensor, b_index: Tensor | None, weights: Tensor | None, offsets: Tensor
) -> Tensor:
    """(E, A, B): for each expert the sum over its rows r of a[a_index[r]] ⊗ (weights[r] · b[b_index[r]]).

    Args:
        a: (·, A), of any strides.
        a_index: (M,) int64; None: row r itself.
        b: (·, B), the same.
        b_index: like `a_index`.
        weights: (M,) or None.
        offsets: (E+1,) int64.
    """
    E, A, B = offsets.shape[0] - 1, a.shape[1], b.shape[1]
    c_EAB = a.new_empty(E, A, B)

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (E * triton.cdiv(A, meta["BLOCK_M"]) * triton.cdiv(B, meta["BLOCK_N"]),)

    _outer_products[grid](
        a,
        a_index,
        b,
        b_index,
        weights,
        c_EAB,
        offsets,
        A,
        B,
        *a.stride(),
        *b.stride(),
        GATHER_A=a_index is not None,
        WEIGHTED=weights is not None,
        PRECISION=precision(),
        enable_fp_fusion=True,
    )
    return c_EAB


@triton.jit
def _sum_rows(
    a_ptr,
    index_ptr,
    weight_ptr,
    c_ptr,
    offsets_ptr,
    N,
    stride_ar,
    stride_an,
    GATHER: tl.constexpr,
    WEIGHTED: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    e = tl.program_id(0) // tl.cdiv(N, COLUMNS)
    n = tl.program_id(0) % tl.cdiv(N, COLUMNS) * COLUMNS + tl.arange(0, COLUMNS)
    stop = tl.load(offsets_ptr + e + 1).to(tl.int32)
    c = tl.zeros((COLUMNS,), tl.float32)
    for start in range(tl.load(offsets_ptr + e).to(tl.int32), stop, ROWS):
        rows = start + tl.arange(0, ROWS)
        live = rows < stop
        a_rows = tl.load(index_ptr + rows, mask=live, other=0) if GATHER else rows.to(tl.int64)
        a_ptrs = a_ptr + a_rows[:, None] * stride_ar + n[None, :] * stride_an
        a = tl.load(a_ptrs, mask=live[:, None] & (n[None, :] < N), other=0.0).to(tl.float32)
        if WEIGHTED:
            a *= tl.load(weight_ptr + rows, mask=live, other=0.0).to(tl.float32)[:, None]
        c += tl.sum(a, 0)
    tl.store(c_ptr + e.to(tl.int64) * N + n, rounded(c, c_ptr.dtype.element_ty), mask=n < N)


def sum_rows(a: Tensor, index: Tensor | None, weights: Tensor | None, offsets: Tensor) -> Tensor:
    """(E, A): for each expert the sum over its rows r of weights[r] · a[index[r]]; arguments as in `outer_products`."""
    E, A = offsets.shape[0] - 1, a.shape[1]
    c_EA = a.new_empty(E, A)
    launch(
        _sum_rows,
        E * triton.cdiv(A, _COLUMNS),
        a,
        index,
        weights,
        c_EA,
        offsets,
        A,
        *a.stride(),
        GATHER=index is not None,
        WEIGHTED=weights is not None,
        COLUMNS=_COLUMNS,
        ROWS=_ROWS,
        elements=_ROWS * _COLUMNS,
    )
    return c_EA
