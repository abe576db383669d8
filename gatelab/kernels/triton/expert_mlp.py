"""The experts' multilayer perceptrons in Triton: grouped products that gather as they load, one operator each way."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from gatelab.kernels import flops
from gatelab.kernels.reference.expert_mlp import expert_mlp as reference
from gatelab.kernels.triton._expert_combine import by_token, combine, row_products
from gatelab.kernels.triton._expert_hidden import hidden_gradient
from gatelab.kernels.triton._expert_tiles import tiles_of
from gatelab.kernels.triton._expert_up import up
from gatelab.kernels.triton._expert_weights import outer_products, sum_rows
from gatelab.kernels.triton._grouped_gemm import multiply_rows
from gatelab.kernels.triton._launch import device_of, no_second_derivative


def expert_mlp(
    x_TD: Tensor,
    token_index: Tensor,
    expert_offsets: Tensor,
    weights: Tensor,
    up_proj: Tensor,
    down_proj: Tensor,
    *,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    activation: str | Callable[[Tensor], Tensor] = "swiglu",
    weights_on_input: bool = False,
) -> Tensor:
    """See `gatelab.kernels.expert_mlp`. A callable activation and float64 run in the slower reference.

    For the backward pass it keeps its arguments, what enters the activation (M, J) in their dtype, and M + T + 1 int64
    of order: with M = T·K and b bytes per element 2·b·T·K·I + 8·(T·K + T + 1) bytes beyond x for gated experts. A dense
    SwiGLU of width K·I keeps at least 3·b·T·K·I: its two halves and their product.

    Float32 is multiplied exactly, or in TF32 where `torch.backends.cuda.matmul` allows it. Deterministic: no atomics,
    every sum in an order that depends on the shapes and the tuned tile sizes alone.

    Raises:
        NotImplementedError: in a second backward pass, which only the reference has.
    """
    # a callable may hold parameters, whose gradients only autograd finds
    if callable(activation) or x_TD.dtype == torch.float64:
        return reference(
            x_TD,
            token_index,
            expert_offsets,
            weights,
            up_proj,
            down_proj,
            up_bias=up_bias,
            down_bias=down_bias,
            activation=activation,
            weights_on_input=weights_on_input,
        )
    tensors = (x_TD, token_index, expert_offsets, weights, up_proj, down_proj, up_bias, down_bias)
    keep_hidden = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return _forward(*tensors, activation, weights_on_input, keep_hidden)[0]


@torch.library.custom_op("gatelab::expert_mlp_triton", mutates_args=())
def _forward(
    x_TD: Tensor,
    token_index: Tensor,
    expert_offsets: Tensor,
    weights: Tensor,
    up_proj: Tensor,
    down_proj: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: str,
    weights_on_input: bool,
    keep_hidden: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    token_index, expert_offsets, weights, up_bias, down_bias = _contiguous(
        token_index, expert_offsets, weights, up_bias, down_bias
    )
    before, after = (weights, None) if weights_on_input else (None, weights)
    with device_of(x_TD):
        tiles = tiles_of(expert_offsets, token_index.shape[0])
        order, token_offsets = by_token(token_index, expert_offsets, x_TD.shape[0])
        I = down_proj.shape[2]
        hidden, activated = up(x_TD, token_index, before, up_proj, up_bias, tiles, activation, I, keep_hidden)
        rows_MD = multiply_rows(activated, down_proj, down_bias, tiles)
        return combine(rows_MD, after, order, token_offsets), hidden, order, token_offsets


@_forward.register_fake
def _(x_TD, token_index, expert_offsets, weights, up_proj, *rest) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    keep_hidden = rest[-1]
    M = token_index.shape[0]
    hidden = x_TD.new_empty(M if keep_hidden else 0, up_proj.shape[1])
    order, token_offsets = token_index.new_empty(M), token_index.new_empty(x_TD.shape[0] + 1)
    return x_TD.new_empty(x_TD.shape), hidden, order, token_offsets


@torch.library.custom_op("gatelab::expert_mlp_triton_backward", mutates_args=())
def _backward(
    grad_TD: Tensor,
    hidden: Tensor,
    order: Tensor,
    token_offsets: Tensor,
    x_TD: Tensor,
    token_index: Tensor,
    expert_offsets: Tensor,
    weights: Tensor,
    up_proj: Tensor,
    down_proj: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: str,
    weights_on_input: bool,
    x_wanted: bool,
    weights_wanted: bool,
    experts_wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    token_index, expert_offsets, weights, up_bias, down_bias = _contiguous(
        token_index, expert_offsets, weights, up_bias, down_bias
    )
    before, after = (weights, None) if weights_on_input else (None, weights)
    gradients = [x_TD.new_empty(0) for _ in range(6)]  # an operator cannot return None
    with device_of(x_TD):
        tiles = tiles_of(expert_offsets, token_index.shape[0])
        grad_hidden, activated, products = hidden_gradient(
            grad_TD, token_index, after, down_proj, hidden, tiles, activation
        )
        if x_wanted or (weights_wanted and weights_on_input):
            rows_MD = multiply_rows(grad_hidden, up_proj.transpose(1, 2), None, tiles)
            if x_wanted:
                gradients[0] = combine(rows_MD, before, order, token_offsets)
            if weights_on_input:
                products = row_products(rows_MD, None, x_TD, token_index, expert_offsets)
        if weights_wanted and products is not None:
            if down_bias is not None and not weights_on_input:
                expert_index = _expert_of_rows(expert_offsets, products)
                products = products + row_products(grad_TD, token_index, down_bias, expert_index, expert_offsets)
            live = torch.arange(products.shape[0], device=products.device) < expert_offsets[-1]
            gradients[1] = torch.where(live, products, 0).to(weights.dtype)
        if experts_wanted:
            gradients[2] = outer_products(grad_hidden, None, x_TD, token_index, before, expert_offsets)
            gradients[3] = outer_products(grad_TD, token_index, activated, None, None, expert_offsets)
            if up_bias is not None:
                gradients[4] = sum_rows(grad_hidden, None, None, expert_offsets)
            if down_bias is not None:
                gradients[5] = sum_rows(grad_TD, token_index, after, expert_offsets)
    x, w, up_p, down_p, up_b, down_b = gradients
    return x, w, up_p, down_p, up_b, down_b


@_backward.register_fake
def _(
    grad_TD, hidden, order, _, x_TD, __, ___, weights, up_proj, down_proj, up_bias, down_bias, ____, _____, *wanted
) -> tuple[Tensor, ...]:
    x_wanted, weights_wanted, experts_wanted = wanted
    parameters = [(p, experts_wanted and p is not None) for p in (up_proj, down_proj, up_bias, down_bias)]
    return tuple(
        torch.empty_like(tensor, memory_format=torch.contiguous_format) if is_wanted else x_TD.new_empty(0)
        for tensor, is_wanted in [(x_TD, x_wanted), (weights, weights_wanted), *parameters]
    )


def _contiguous(*vectors: Tensor | None) -> list[Any]:
    """Small beside the rest: only matrices are read in any strides."""
    return [None if vector is None else vector.contiguous() for vector in vectors]


def _expert_of_rows(expert_offsets: Tensor, rows: Tensor) -> Tensor:
    """(M,): the expert of each row; in the tail any."""
    index = torch.arange(rows.shape[0], device=rows.device)
    return torch.searchsorted(expert_offsets[1:], index, right=True).clamp_(max=expert_offsets.shape[0] - 2)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:], *inputs[:8])
    ctx.activation, ctx.weights_on_input, _ = inputs[8:]


def _gradients(ctx: Any, grad_TD: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    inputs, needs = ctx.saved_tensors[3:], ctx.needs_input_grad
    wanted = (needs[0], needs[3], any(needs[4:8]))
    x, weights, *parameters = _backward(grad_TD, *ctx.saved_tensors, ctx.activation, ctx.weights_on_input, *wanted)
    parameters = [g if wanted[2] and p is not None else None for g, p in zip(parameters, inputs[4:], strict=True)]
    return x if wanted[0] else None, None, None, weights if wanted[1] else None, *parameters, None, None, None


_forward.register_autograd(_gradients, setup_context=_save)
_backward.register_autograd(no_second_derivative("expert_mlp"))


@register_flop_formula(torch.ops.gatelab.expert_mlp_triton_backward, get_raw=True)
def _(grad_TD, hidden, order, token_offsets, *rest, **named) -> int:
    return flops.expert_mlp_backward(grad_TD, hidden, *rest, **named)


register_flop_formula(torch.ops.gatelab.expert_mlp_triton, get_raw=True)(flops.expert_mlp_forward)
