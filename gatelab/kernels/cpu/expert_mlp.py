"""The experts' multilayer perceptrons on the CPU, as one operator with its own backward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from gatelab.kernels import flops
from gatelab.kernels.cpu._expert_backward import backward
from gatelab.kernels.cpu._expert_forward import Arguments, forward
from gatelab.kernels.reference.expert_mlp import expert_mlp as reference


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
    """See `gatelab.kernels.expert_mlp`. A callable activation runs in the slower reference, which splits a compiled
    graph: it cuts the rows where `expert_offsets` says, and only this backend's operator hides that from the compiler.

    Raises:
        NotImplementedError: in a second backward pass, which only the reference has.
    """
    if callable(activation):  # it may hold parameters, whose gradients only autograd finds
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


@torch.library.custom_op("gatelab::expert_mlp_cpu", mutates_args=(), device_types="cpu")
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
) -> tuple[Tensor, Tensor]:
    tensors = (x_TD, token_index, expert_offsets, weights, up_proj, down_proj, up_bias, down_bias)
    with torch.autocast("cpu", enabled=False):
        return forward(Arguments(*tensors, activation, weights_on_input), keep_hidden)


@_forward.register_fake
def _(x_TD, token_index, expert_offsets, weights, up_proj, *rest) -> tuple[Tensor, Tensor]:
    keep_hidden = rest[-1]
    hidden = x_TD.new_empty(token_index.shape[0] if keep_hidden else 0, up_proj.shape[1])
    return x_TD.new_empty(x_TD.shape), hidden


@torch.library.custom_op("gatelab::expert_mlp_cpu_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad_TD: Tensor,
    hidden: Tensor,
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
    tensors = (x_TD, token_index, expert_offsets, weights, up_proj, down_proj, up_bias, down_bias)
    with torch.autocast("cpu", enabled=False):
        gradients = backward(
            grad_TD,
            hidden,
            Arguments(*tensors, activation, weights_on_input),
            x_wanted=x_wanted,
            weights_wanted=weights_wanted,
            experts_wanted=experts_wanted,
        )
    none = x_TD.new_empty(0)  # an operator cannot return None
    x, w, up, down, up_b, down_b = (none.clone() if gradient is None else gradient for gradient in gradients)
    return x, w, up, down, up_b, down_b


@_backward.register_fake
def _(
    grad_TD, hidden, x_TD, token_index, expert_offsets, weights, up_proj, down_proj, up_bias, down_bias, _, __, *wanted
) -> tuple[Tensor, ...]:
    x_wanted, weights_wanted, experts_wanted = wanted
    parameters = [(p, experts_wanted and p is not None) for p in (up_proj, down_proj, up_bias, down_bias)]
    return tuple(
        torch.empty_like(tensor, memory_format=torch.contiguous_format) if is_wanted else x_TD.new_empty(0)
        for tensor, is_wanted in [(x_TD, x_wanted), (weights, weights_wanted), *parameters]
    )


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:8], output[1])
    ctx.activation, ctx.weights_on_input, _ = inputs[8:]


def _gradients(ctx: Any, grad_TD: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, hidden = ctx.saved_tensors
    needs = ctx.needs_input_grad
    wanted = (needs[0], needs[3], any(needs[4:8]))
    x, weights, *parameters = _backward(grad_TD, hidden, *inputs, ctx.activation, ctx.weights_on_input, *wanted)
    parameters = [g if wanted[2] and p is not None else None for g, p in zip(parameters, inputs[4:], strict=True)]
    return x if wanted[0] else None, None, None, weights if wanted[1] else None, *parameters, None, None, None


def _no_second_derivative(ctx: Any, *_: Tensor) -> None:
    raise NotImplementedError(
        "expert_mlp has no second derivative on the cpu backend; run it under gatelab.kernels.use('reference')"
    )


_forward.register_autograd(_gradients, setup_context=_save)
_backward.register_autograd(_no_second_derivative)
register_flop_formula(torch.ops.gatelab.expert_mlp_cpu, get_raw=True)(flops.expert_mlp_forward)
register_flop_formula(torch.ops.gatelab.expert_mlp_cpu_backward, get_raw=True)(flops.expert_mlp_backward)
