"""What happens between rows of assignments and rows of tokens: adding up, and inner products of rows."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gatelab.kernels.triton._expert_arithmetic import rounded
from gatelab.kernels.triton._launch import launch

_COLUMNS = 1024


def by_token(token_index: Tensor, expert_offsets: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """The inverse of `token_index`, without a synchronisation.

    Returns:
        `order` (M,) int64 and `token_offsets` (T+1,) int64: token t owns the assignments
        `order[token_offsets[t]:token_offsets[t + 1]]`, in ascending order, thus of expert; the tail comes last.
    """
    live = torch.arange(token_index.shape[0], device=token_index.device) < expert_offsets[-1]
    # half the passes of a radix sort of int64
    tokens, order = torch.where(live, token_index, num_tokens).int().sort(stable=True)
    boundaries = torch.arange(num_tokens + 1, dtype=torch.int32, device=token_index.device)
    return order, torch.searchsorted(tokens, boundaries)


@triton.jit
def _combine(
    rows_ptr, weight_ptr, order_ptr, token_offsets_ptr, y_ptr, N, WEIGHTED: tl.constexpr, COLUMNS: tl.constexpr
):
    t = (tl.program_id(0) // tl.cdiv(N, COLUMNS)).to(tl.int64)
    n = tl.program_id(0) % tl.cdiv(N, COLUMNS) * COLUMNS + tl.arange(0, COLUMNS)
    y = tl.zeros((COLUMNS,), tl.float32)
    for i in range(tl.load(token_offsets_ptr + t).to(tl.int32), tl.load(token_offsets_ptr + t + 1).to(tl.int32)):
        m = tl.load(order_ptr + i)
        row = tl.load(rows_ptr + m * N + n, mask=n < N, other=0.0).to(tl.float32)
        if WEIGHTED:
            row *= tl.load(weight_ptr + m).to(tl.float32)
        y += row
    tl.store(y_ptr + t * N + n, rounded(y, y_ptr.dtype.element_ty), mask=n < N)


def combine(rows_MN: Tensor, weights: Tensor | None, order: Tensor, token_offsets: Tensor) -> Tensor:
    """(T, N): the weighted sum of each token's rows, in float32 and in their order."""
    T, N = token_offsets.shape[0] - 1, rows_MN.shape[1]
    y_TN = rows_MN.new_empty(T, N)
    size = min(_COLUMNS, triton.next_power_of_2(N))
    launch(
        _combine,
        T * triton.cdiv(N, size),
        rows_MN,
        weights,
        order,
        token_offsets,
        y_TN,
        N,
        WEIGHTED=weights is not None,
        COLUMNS=size,
        elements=size,
    )
    return y_TN


@triton.jit
def _row_products(
    a_ptr,
    a_index_ptr,
    b_ptr,
    b_index_ptr,
    c_ptr,
    count_ptr,
    N,
    stride_ar,
    stride_an,
    stride_br,
    stride_bn,
    GATHER_A: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    m = tl.program_id(0)
    c = tl.zeros((COLUMNS,), tl.float32)
    if m < tl.load(count_ptr):
        a_row = tl.load(a_index_ptr + m) if GATHER_A else m.to(tl.int64)
        b_row = tl.load(b_index_ptr + m)
        for start in range(0, N, COLUMNS):
            n = start + tl.arange(0, COLUMNS)
            a = tl.load(a_ptr + a_row * stride_ar + n * stride_an, mask=n < N, other=0.0).to(tl.float32)
            c += a * tl.load(b_ptr + b_row * stride_br + n * stride_bn, mask=n < N, other=0.0).to(tl.float32)
    tl.store(c_ptr + m, tl.sum(c, 0))


def row_products(a: Tensor, a_index: Tensor | None, b: Tensor, b_index: Tensor, expert_offsets: Tensor) -> Tensor:
    """(M,) float32: the inner products a[a_index[m]] · b[b_index[m]], 0 in the tail; `a_index` None: row m itself."""
    M, N = b_index.shape[0], a.shape[1]
    c_M = a.new_empty(M, dtype=torch.float32)
    size = min(_COLUMNS, triton.next_power_of_2(N))
    launch(
        _row_products,
        M,
        a,
        a_index,
        b,
        b_index,
        c_M,
        expert_offsets[-1:],
        N,
        *a.stride(),
        *b.stride(),
        GATHER_A=a_index is not None,
        COLUMNS=size,
        elements=size,
    )
    return c_M
