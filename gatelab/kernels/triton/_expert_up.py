"""The first product of the experts: gathers the tokens' rows as it loads them, applies the activation as it stores."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from gatelab.kernels.triton._expert_activation import POINTWISE, function
from gatelab.kernels.triton._expert_arithmetic import dot, rounded
from gatelab.kernels.triton._expert_configs import precision, programs, tuned
from gatelab.kernels.triton._expert_tiles import Tiles, find


@tuned("GATED")
@triton.jit
def _up(
    a_ptr,  # x (T, D = K), of which assignment m reads row token[m]
    token_ptr,
    weight_ptr,
    b_ptr,  # up_proj (E, J, D), J = 2·N if gated
    bias_ptr,
    hidden_ptr,
    activated_ptr,
    expert_ptr,
    first_row_ptr,
    number_ptr,
    offsets_ptr,
    N,
    K,
    stride_at,
    stride_ak,
    stride_be,
    stride_bn,
    stride_bk,
    POINTWISE: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    KEEP_HIDDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PROGRAMS_PER_SM: tl.constexpr,
):
    dtype: tl.constexpr = activated_ptr.dtype.element_ty
    row_tiles, column_tiles = tl.load(number_ptr), tl.cdiv(N, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    for tile in range(tl.program_id(0), row_tiles * column_tiles, tl.num_programs(0)):
        e, rows, live, column_tile = find(
            tile, row_tiles, column_tiles, expert_ptr, first_row_ptr, offsets_ptr, BLOCK_M
        )
        n = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
        a_ptrs = a_ptr + tl.load(token_ptr + rows)[:, None] * stride_at + k[None, :] * stride_ak
        b_ptrs = b_ptr + e * stride_be + k[:, None] * stride_bk + n[None, :] * stride_bn
        weight = tl.load(weight_ptr + rows).to(tl.float32)[:, None] if WEIGHTED else 1.0
        gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, K, BLOCK_K):
            left = K - start
            inside = (k[:, None] < left) & (n[None, :] < N)
            a = tl.load(a_ptrs, mask=k[None, :] < left, other=0.0)
            if WEIGHTED:
                a = rounded(a.to(tl.float32) * weight, dtype)
            gate = dot(a, tl.load(b_ptrs, mask=inside, other=0.0), gate, PRECISION)
            if GATED:
                up = dot(a, tl.load(b_ptrs + N * stride_bn, mask=inside, other=0.0), up, PRECISION)
            a_ptrs += BLOCK_K * stride_ak
            b_ptrs += BLOCK_K * stride_bk
        J = 2 * N if GATED else N
        if HAS_BIAS:
            gate += tl.load(bias_ptr + e * J + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
            if GATED:
                up += tl.load(bias_ptr + e * J + N + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
        stored = live[:, None] & (n[None, :] < N)
        # rounded before the activation, so that the backward pass, which only has the rounded values, finds the same
        hidden_ptrs = hidden_ptr + rows[:, None] * J + n[None, :]
        gate_rounded = rounded(gate, dtype)
        activated = function(gate_rounded.to(tl.float32), POINTWISE)
        if KEEP_HIDDEN:
            tl.store(hidden_ptrs, gate_rounded, mask=stored)
        if GATED:
            up_rounded = rounded(up, dtype)
            activated *= up_rounded.to(tl.float32)
            if KEEP_HIDDEN:
                tl.store(hidden_ptrs + N, up_rounded, mask=stored)
        tl.store(activated_ptr + rows[:, None] * N + n[None, :], rounded(activated, dtype), mask=stored)


def up(
    x_TD: Tensor,
    token_index: Tensor,
    weights: Tensor | None,
    up_proj: Tensor,
    up_bias: Tensor | None,
    tiles: Tiles,
    activation: str,
    intermediate_size: int,
    keep_hidden: bool,
) -> tuple[Tensor, Tensor]:
    """What enters the activation, (M, J) or, without `keep_hidden`, (0, J), and what leaves it, (M, I).

    `weights` multiply the rows that enter the expert; None: no weights. Rows of no expert are left as allocated.
    """
    (_, J, D), I, M = up_proj.shape, intermediate_size, token_index.shape[0]
    hidden, activated = x_TD.new_empty(M if keep_hidden else 0, J), x_TD.new_empty(M, I)

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (programs(x_TD, tiles.most * triton.cdiv(I, meta["BLOCK_N"]), meta["PROGRAMS_PER_SM"]),)

    _up[grid](
        x_TD,
        token_index,
        weights,
        up_proj,
        up_bias,
        hidden,
        activated,
        *tiles.arguments,
        I,
        D,
        *x_TD.stride(),
        *up_proj.stride(),
        POINTWISE=POINTWISE[activation],
        GATED=J == 2 * I,
        HAS_BIAS=up_bias is not None,
        WEIGHTED=weights is not None,
        KEEP_HIDDEN=keep_hidden,
        PRECISION=precision(),
        enable_fp_fusion=True,
        BLOCK_M=tiles.block_rows,
    )
    return hidden, activated
