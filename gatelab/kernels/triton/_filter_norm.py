"""The second taps' sum, the residual and the RMSNorm. Axes: B sequences, S positions, D features."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gatelab.kernels.triton._launch import computed_in, launch, no_second_derivative, num_programs


@torch.library.custom_op("gatelab::filter_norm_triton", mutates_args=())
def add_norm(
    taps: Tensor, before: Tensor | None, x: Tensor, norm_weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """y = RMSNorm(r) with r_t = x_t + taps_{t-1, :D} + taps_{t, D:}.

    Args:
        taps: (B, S, 2D), what each position gives the next one and itself.
        before: (B, D), what the first position is given; None = 0.
        x: (B, S, D), in the dtype of `taps` and `before`.
        norm_weight: (D,).
        eps: added to the mean square.

    Returns:
        y (B, S, D) in the dtype of x · norm_weight; r in that of x and 1/rms (B·S,), for the backward pass.
    """
    B, S, _ = x.shape
    y = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, norm_weight.dtype))
    r, scale = x.new_empty(x.shape), x.new_empty(B * S, dtype=torch.promote_types(x.dtype, torch.float32))
    before = None if before is None else before.contiguous()
    inputs = (taps.contiguous(), before, x.contiguous(), norm_weight.contiguous())
    launch(_forward_kernel, B * S, *inputs, y, r, scale, S, eps, **_constants(x))
    return y, r, scale


@add_norm.register_fake
def _(taps, before, x, norm_weight, eps) -> tuple[Tensor, Tensor, Tensor]:
    y = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, norm_weight.dtype))
    tokens = x.shape[0] * x.shape[1]
    return y, x.new_empty(x.shape), x.new_empty(tokens, dtype=torch.promote_types(x.dtype, torch.float32))


@torch.library.custom_op("gatelab::filter_norm_triton_backward", mutates_args=())
def _backward(grad: Tensor, r: Tensor, scale: Tensor, norm_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    B, S, D = r.shape
    programs = min(B * S, num_programs(r.device))
    d_taps, d_before = r.new_empty(B, S, 2 * D), r.new_empty(B, D)
    d_weight = scale.new_empty(programs, D)
    inputs = (grad.contiguous(), r, scale, norm_weight.contiguous())
    launch(_backward_kernel, programs, *inputs, d_taps, d_before, d_weight, B * S, S, **_constants(r))
    return d_taps, d_before, d_weight.sum(0).to(norm_weight.dtype)


@_backward.register_fake
def _(grad: Tensor, r: Tensor, scale: Tensor, norm_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    B, S, D = r.shape
    return r.new_empty(B, S, 2 * D), r.new_empty(B, D), norm_weight.new_empty(D)


def _constants(x: Tensor) -> dict[str, Any]:
    D = x.shape[2]
    block_D = triton.next_power_of_2(D)
    return {"D": D, "BLOCK_D": block_D, "COMPUTE": computed_in(x.dtype), "elements": block_D}


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    _, before, _, norm_weight, _ = inputs
    ctx.has_before = before is not None
    ctx.save_for_backward(*output[1:], norm_weight)


def _gradients(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    d_taps, d_before, d_weight = _backward(grad, *ctx.saved_tensors)
    d_x = d_taps[..., d_taps.shape[2] // 2 :]  # a position's own tap and the residual are added alike
    return d_taps, d_before if ctx.has_before else None, d_x, d_weight, None


add_norm.register_autograd(_gradients, setup_context=_save)
_backward.register_autograd(no_second_derivative("local_filter"))


@triton.jit
def _only_if(condition, features, D: tl.constexpr):
    """The mask of a row, or of nothing. (A block & a scalar is no mask to the interpreter.)"""
    return features < tl.where(condition, D, 0)


@triton.jit
def _forward_kernel(
    taps_ptr,
    before_ptr,
    x_ptr,
    weight_ptr,
    y_ptr,
    r_ptr,
    scale_ptr,
    S,
    eps,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """One token."""
    token = tl.program_id(0).to(tl.int64)
    features = tl.arange(0, BLOCK_D)
    inside, position = features < D, token % S
    own = taps_ptr + token * (2 * D) + features
    r_D = tl.load(x_ptr + token * D + features, mask=inside, other=0.0).to(COMPUTE)
    r_D += tl.load(own + D, mask=inside, other=0.0).to(COMPUTE)
    r_D += tl.load(own - 2 * D, mask=_only_if(position > 0, features, D), other=0.0).to(COMPUTE)
    if before_ptr is not None:
        first = before_ptr + token // S * D + features
        r_D += tl.load(first, mask=_only_if(position == 0, features, D), other=0.0).to(COMPUTE)
    scale = tl.rsqrt(tl.sum(r_D * r_D, axis=0) / D + eps)
    y_D = r_D * scale * tl.load(weight_ptr + features, mask=inside, other=0.0).to(COMPUTE)
    tl.store(y_ptr + token * D + features, y_D.to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(r_ptr + token * D + features, r_D.to(r_ptr.dtype.element_ty), mask=inside)
    tl.store(scale_ptr + token, scale)


@triton.jit
def _backward_kernel(
    grad_ptr,
    r_ptr,
    scale_ptr,
    weight_ptr,
    d_taps_ptr,
    d_before_ptr,
    d_weight_ptr,
    T,
    S,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """An equal share of the tokens each: dr = (g w − n · mean(g w n)) / rms with n = r / rms, and a share of Σ g n."""
    features = tl.arange(0, BLOCK_D)
    inside = features < D
    weight_D = tl.load(weight_ptr + features, mask=inside, other=0.0).to(COMPUTE)
    d_weight_D = tl.zeros([BLOCK_D], COMPUTE)
    share = tl.cdiv(T, tl.num_programs(0))
    token = tl.program_id(0) * share
    end = tl.minimum(token + share, T)
    while token < end:
        row, position = token.to(tl.int64), token % S
        scale = tl.load(scale_ptr + row)
        normed_D = tl.load(r_ptr + row * D + features, mask=inside, other=0.0).to(COMPUTE) * scale
        grad_D = tl.load(grad_ptr + row * D + features, mask=inside, other=0.0).to(COMPUTE)
        d_weight_D += grad_D * normed_D
        scaled_D = grad_D * weight_D
        d_r_D = (scaled_D - normed_D * (tl.sum(scaled_D * normed_D, axis=0) / D)) * scale
        d_r_D = d_r_D.to(d_taps_ptr.dtype.element_ty)
        own = d_taps_ptr + row * (2 * D) + features
        tl.store(own + D, d_r_D, mask=inside)
        tl.store(own - 2 * D, d_r_D, mask=_only_if(position > 0, features, D))
        tl.store(own, tl.zeros_like(d_r_D), mask=_only_if(position == S - 1, features, D))
        tl.store(d_before_ptr + row // S * D + features, d_r_D, mask=_only_if(position == 0, features, D))
        token += 1
    tl.store(d_weight_ptr + tl.program_id(0) * D + features, d_weight_D, mask=inside)
