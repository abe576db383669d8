"""Rows of each expert times its matrix: the inner loops, and the product that needs nothing else."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from gatelab.kernels.triton._expert_arithmetic import dot, rounded
from gatelab.kernels.triton._expert_configs import precision, programs, tuned
from gatelab.kernels.triton._expert_tiles import Tiles, find


@triton.jit
def row_products(
    a_ptr, a_rows, stride_ak, b_ptr, columns, stride_bn, stride_bk, N, K, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr
):
    """Σ_k a[a_rows, k] · b[columns, k]; `a_rows` (BLOCK_M,) in elements from `a_ptr`, `columns` (BLOCK_N,) below N."""
    k = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + a_rows[:, None] + k[None, :] * stride_ak
    b_ptrs = b_ptr + k[:, None] * stride_bk + columns[None, :] * stride_bn
    c = tl.zeros((a_rows.shape[0], columns.shape[0]), tl.float32)
    for start in range(0, K, BLOCK_K):
        left = K - start
        a = tl.load(a_ptrs, mask=k[None, :] < left, other=0.0)
        b = tl.load(b_ptrs, mask=(k[:, None] < left) & (columns[None, :] < N), other=0.0)
        c = dot(a, b, c, PRECISION)
        a_ptrs += BLOCK_K * stride_ak
        b_ptrs += BLOCK_K * stride_bk
    return c


@tuned()
@triton.jit
def _multiply_rows(
    a_ptr,
    b_ptr,
    bias_ptr,
    c_ptr,
    expert_ptr,
    first_row_ptr,
    number_ptr,
    offsets_ptr,
    N,
    K,
    stride_be,
    stride_bn,
    stride_bk,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PROGRAMS_PER_SM: tl.constexpr,
):
    row_tiles, column_tiles = tl.load(number_ptr), tl.cdiv(N, BLOCK_N)
    for tile in range(tl.program_id(0), row_tiles * column_tiles, tl.num_programs(0)):
        e, rows, live, column_tile = find(
            tile, row_tiles, column_tiles, expert_ptr, first_row_ptr, offsets_ptr, BLOCK_M
        )
        n = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
        c = row_products(a_ptr, rows * K, 1, b_ptr + e * stride_be, n, stride_bn, stride_bk, N, K, BLOCK_K, PRECISION)
        if HAS_BIAS:
            c += tl.load(bias_ptr + e * N + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
        c_ptrs = c_ptr + rows[:, None] * N + n[None, :]
        tl.store(c_ptrs, rounded(c, c_ptr.dtype.element_ty), mask=live[:, None] & (n[None, :] < N))


def multiply_rows(a_MK: Tensor, b_ENK: Tensor, bias_EN: Tensor | None, tiles: Tiles) -> Tensor:
    """(M, N): row m of expert e becomes b_e a_m + bias_e. Rows of no expert are left as they were allocated.

    Args:
        a_MK: (M, K), contiguous, grouped by expert.
        b_ENK: (E, N, K), of any strides.
        bias_EN: (E, N), contiguous, or None.
        tiles: of the M rows.
    """
    M, K = a_MK.shape
    N = b_ENK.shape[1]
    c_MN = a_MK.new_empty(M, N)

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (programs(a_MK, tiles.most * triton.cdiv(N, meta["BLOCK_N"]), meta["PROGRAMS_PER_SM"]),)

    _multiply_rows[grid](
        a_MK,
        b_ENK,
        bias_EN,
        c_MN,
        *tiles.arguments,
        N,
        K,
        *b_ENK.stride(),
        HAS_BIAS=bias_EN is not None,
        PRECISION=precision(),
        enable_fp_fusion=True,
        BLOCK_M=tiles.block_rows,
    )
    return c_MN
