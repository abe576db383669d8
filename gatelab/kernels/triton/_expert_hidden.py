"""The gradient of what enters the activation: gathers rows as it loads them, and recomputes what left it."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gatelab.kernels.triton._expert_activation import POINTWISE, derivative, function
from gatelab.kernels.triton._expert_arithmetic import halves, rounded
from gatelab.kernels.triton._expert_configs import PART, precision, programs, tuned
from gatelab.kernels.triton._expert_tiles import Tiles, find
from gatelab.kernels.triton._grouped_gemm import row_products


class HiddenGradient(NamedTuple):
    """`grad_hidden` (M, J); `activated` (M, I), weighted; `weight_products` (M,) float32, or None with no weights."""

    grad_hidden: Tensor
    activated: Tensor
    weight_products: Tensor | None


@triton.jit
def _store(
    grad,  # of columns first… of what leaves the activation
    weight,
    rows,
    live,
    first,
    N,
    parts,
    hidden_ptr,
    grad_hidden_ptr,
    activated_ptr,
    products_ptr,
    POINTWISE: tl.constexpr,
    GATED: tl.constexpr,
    WEIGHTED: tl.constexpr,
):
    if grad.shape[1] > PART:  # all at once would need more registers than there are
        left, right = halves(grad)
        middle = first + left.shape[1]
        pointers = (hidden_ptr, grad_hidden_ptr, activated_ptr, products_ptr)
        _store(left, weight, rows, live, first, N, parts, *pointers, POINTWISE, GATED, WEIGHTED)
        _store(right, weight, rows, live, middle, N, parts, *pointers, POINTWISE, GATED, WEIGHTED)
    else:
        dtype: tl.constexpr = grad_hidden_ptr.dtype.element_ty
        J = 2 * N if GATED else N
        n = first + tl.arange(0, PART)
        stored = live[:, None] & (n[None, :] < N)
        hidden_ptrs = hidden_ptr + rows[:, None] * J + n[None, :]
        grad_hidden_ptrs = grad_hidden_ptr + rows[:, None] * J + n[None, :]
        hidden = tl.load(hidden_ptrs, mask=stored, other=0.0).to(tl.float32)
        activated = function(hidden, POINTWISE)
        slope = derivative(hidden, POINTWISE) * weight
        if GATED:
            up = tl.load(hidden_ptrs + N, mask=stored, other=0.0).to(tl.float32)
            tl.store(grad_hidden_ptrs + N, rounded(grad * activated * weight, dtype), mask=stored)
            activated *= up
            slope *= up
        tl.store(grad_hidden_ptrs, rounded(grad * slope, dtype), mask=stored)
        if WEIGHTED:
            part = first // PART + tl.arange(0, 1)[None, :]
            products = tl.sum(grad * activated, 1, keep_dims=True)
            tl.store(products_ptr + rows[:, None] * parts + part, products, mask=live[:, None] & (part < parts))
        tl.store(activated_ptr + rows[:, None] * N + n[None, :], rounded(activated * weight, dtype), mask=stored)


@tuned()
@triton.jit
def _hidden_gradient(
    a_ptr,  # the gradient of y (T, D = K), of which assignment m reads row token[m]
    token_ptr,
    weight_ptr,
    b_ptr,  # down_proj (E, D, I = N)
    hidden_ptr,
    grad_hidden_ptr,
    activated_ptr,
    products_ptr,
    expert_ptr,
    first_row_ptr,
    number_ptr,
    offsets_ptr,
    N,
    K,
    parts,
    stride_at,
    stride_ak,
    stride_be,
    stride_bk,
    stride_bn,
    POINTWISE: tl.constexpr,
    GATED: tl.constexpr,
    WEIGHTED: tl.constexpr,
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
        a_rows = tl.load(token_ptr + rows) * stride_at
        grad = row_products(
            a_ptr, a_rows, stride_ak, b_ptr + e * stride_be, n, stride_bn, stride_bk, N, K, BLOCK_K, PRECISION
        )
        pointers = (hidden_ptr, grad_hidden_ptr, activated_ptr, products_ptr)
        weight = tl.load(weight_ptr + rows).to(tl.float32)[:, None] if WEIGHTED else 1.0
        first = column_tile * BLOCK_N
        _store(grad, weight, rows, live, first, N, parts, *pointers, POINTWISE, GATED, WEIGHTED)


def hidden_gradient(
    grad_TD: Tensor,
    token_index: Tensor,
    weights: Tensor | None,
    down_proj: Tensor,
    hidden: Tensor,
    tiles: Tiles,
    activation: str,
) -> HiddenGradient:
    """From the gradient of y; `weights` multiply the rows that leave the expert, None: no weights.

    Rows of no expert are left as they were allocated.
    """
    (_, D, I), (M, J) = down_proj.shape, hidden.shape
    grad_hidden, activated = torch.empty_like(hidden), hidden.new_empty(M, I)
    parts = triton.cdiv(I, PART.value)
    products = None if weights is None else hidden.new_empty(M, parts, dtype=torch.float32)

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (programs(hidden, tiles.most * triton.cdiv(I, meta["BLOCK_N"]), meta["PROGRAMS_PER_SM"]),)

    _hidden_gradient[grid](
        grad_TD,
        token_index,
        weights,
        down_proj,
        hidden,
        grad_hidden,
        activated,
        products,
        *tiles.arguments,
        I,
        D,
        parts,
        *grad_TD.stride(),
        *down_proj.stride(),
        POINTWISE=POINTWISE[activation],
        GATED=J == 2 * I,
        WEIGHTED=weights is not None,
        PRECISION=precision(),
        enable_fp_fusion=True,
        BLOCK_M=tiles.block_rows,
    )
    return HiddenGradient(grad_hidden, activated, None if products is None else products.sum(1))
