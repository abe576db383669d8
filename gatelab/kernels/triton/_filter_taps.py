"""The sum of a position's own tap and the tap of the position before. Axes: B sequences, S positions, H features."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gatelab.kernels.triton._launch import computed_in, launch, no_second_derivative, rows_per_block


@torch.library.custom_op("gatelab::filter_taps_triton", mutates_args=())
def add_taps(taps: Tensor, before: Tensor | None, token_mask: Tensor | None) -> Tensor:
    """o_t = taps_{t-1, :H} + taps_{t, H:}, 0 at masked positions.

    Args:
        taps: (B, S, 2H), what each position gives the next one and itself.
        before: (B, H), what the first position is given, in the dtype of `taps`; None = 0.
        token_mask: (B, S) bool, True = a real token.

    Returns:
        (B, S, H) in the dtype of `taps`.
    """
    B, S, H = taps.shape[0], taps.shape[1], taps.shape[2] // 2
    o = taps.new_empty(B, S, H)
    before, mask = (None if tensor is None else tensor.contiguous() for tensor in (before, token_mask))
    programs, tiling = _tiling(o)
    launch(_forward_kernel, programs, taps.contiguous(), before, mask, o, B * S, S, **tiling)
    return o


@add_taps.register_fake
def _(taps: Tensor, before: Tensor | None, token_mask: Tensor | None) -> Tensor:
    return taps.new_empty(taps.shape[0], taps.shape[1], taps.shape[2] // 2)


@torch.library.custom_op("gatelab::filter_taps_triton_backward", mutates_args=())
def _backward(grad: Tensor, token_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    B, S, H = grad.shape
    d_taps, d_before = grad.new_empty(B, S, 2 * H), grad.new_empty(B, H)
    mask = None if token_mask is None else token_mask.contiguous()
    programs, tiling = _tiling(grad)
    launch(_backward_kernel, programs, grad.contiguous(), mask, d_taps, d_before, B * S, S, **tiling)
    return d_taps, d_before


@_backward.register_fake
def _(grad: Tensor, token_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    B, S, H = grad.shape
    return grad.new_empty(B, S, 2 * H), grad.new_empty(B, H)


def _tiling(o: Tensor) -> tuple[int, dict[str, Any]]:
    B, S, H = o.shape
    block_T, block_H = rows_per_block(H), triton.next_power_of_2(H)
    constants = {"H": H, "BLOCK_T": block_T, "BLOCK_H": block_H, "COMPUTE": computed_in(o.dtype)}
    return triton.cdiv(B * S, block_T), {**constants, "elements": block_T * block_H}


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, before, token_mask = inputs
    ctx.has_before = before is not None
    ctx.save_for_backward(token_mask)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    d_taps, d_before = _backward(grad, *ctx.saved_tensors)
    return d_taps, d_before if ctx.has_before else None, None


add_taps.register_autograd(_gradients, setup_context=_save)
_backward.register_autograd(no_second_derivative("local_filter"))


@triton.jit
def _forward_kernel(
    taps_ptr,
    before_ptr,
    mask_ptr,
    o_ptr,
    T,
    S,
    H: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    tokens = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T).to(tl.int64)
    features = tl.arange(0, BLOCK_H)[None, :]
    exists, inside = (tokens < T)[:, None], features < H
    starts = (tokens % S == 0)[:, None]
    real = exists
    if mask_ptr is not None:
        real = exists & (tl.load(mask_ptr + tokens, mask=tokens < T, other=0) != 0)[:, None]
    cells = tokens[:, None] * (2 * H) + features
    o = tl.load(taps_ptr + cells + H, mask=real & inside, other=0.0).to(COMPUTE)
    o += tl.load(taps_ptr + cells - 2 * H, mask=real & inside & ~starts, other=0.0).to(COMPUTE)
    if before_ptr is not None:
        first = tl.load(before_ptr + (tokens // S)[:, None] * H + features, mask=real & inside & starts, other=0.0)
        o += first.to(COMPUTE)
    tl.store(o_ptr + tokens[:, None] * H + features, o.to(o_ptr.dtype.element_ty), mask=exists & inside)


@triton.jit
def _backward_kernel(
    grad_ptr,
    mask_ptr,
    d_taps_ptr,
    d_before_ptr,
    T,
    S,
    H: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """A copy: a position's gradient, and that of the next one beside it."""
    tokens = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T).to(tl.int64)
    features = tl.arange(0, BLOCK_H)[None, :]
    exists, inside = tokens < T, features < H
    real, next_real = exists, exists & (tokens % S != S - 1)
    if mask_ptr is not None:
        real = tl.load(mask_ptr + tokens, mask=exists, other=0) != 0
        next_real = next_real & (tl.load(mask_ptr + tokens + 1, mask=next_real, other=0) != 0)
    cells = tokens[:, None] * H + features
    own = tl.load(grad_ptr + cells, mask=real[:, None] & inside, other=0.0)
    following = tl.load(grad_ptr + cells + H, mask=next_real[:, None] & inside, other=0.0)
    pair = tokens[:, None] * (2 * H) + features
    tl.store(d_taps_ptr + pair, following, mask=exists[:, None] & inside)
    tl.store(d_taps_ptr + pair + H, own, mask=exists[:, None] & inside)
    starts = exists & (tokens % S == 0)
    tl.store(d_before_ptr + (tokens // S)[:, None] * H + features, own, mask=starts[:, None] & inside)
