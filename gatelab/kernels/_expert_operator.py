"""`expert_mlp` as an operator of torch's and one for its backward pass, whichever backend computes them.

Neither the compiler nor autograd nor the FLOP counter looks inside: each is told here what it needs to know.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from gatelab.kernels import flops
from gatelab.kernels.cpu._plain import is_plain
from gatelab.kernels.reference.expert_mlp import expert_mlp as reference

_ARGUMENTS = (
    "Tensor x_TD, Tensor token_index, Tensor expert_offsets, Tensor weights, Tensor up_proj, Tensor down_proj, "
    "Tensor? up_bias, Tensor? down_bias, str activation, bool weights_on_input"
)
_WANTED = "bool x_wanted, bool weights_wanted, bool experts_wanted"
Empty = Callable[[Tensor, Tensor], Tensor]


def expert_operator(
    backend: str,
    forward: Callable[..., tuple[Tensor, ...]],
    backward: Callable[..., tuple[Tensor | None, ...]],
    *,
    kept: Mapping[str, Empty] | None = None,
    slow_dtypes: tuple[torch.dtype, ...] = (),
    device_types: str | None = None,
) -> Callable[..., Tensor]:
    """The backend's `expert_mlp`.

    A callable activation, which may hold parameters whose gradients only autograd finds, and `slow_dtypes` run in the
    reference.

    Args:
        backend: its name.
        forward: takes the arguments of `_ARGUMENTS` and `keep_hidden`; returns y (T, D), what enters the activation
            (M, J), or (0, J) unless it is to be kept, and what `kept` names.
        backward: takes the gradient of y, all that forward returned after y, and the arguments of `_ARGUMENTS` and
            `_WANTED`; returns the gradients of x_TD, weights, up_proj, down_proj, up_bias and down_bias, None or of
            no consequence where there is none or none is wanted.
        kept: what else forward keeps, by name: from x_TD and token_index, a tensor like it.
        slow_dtypes: of x_TD.
        device_types: as in `torch.library.custom_op`.
    """
    kept = kept or {}
    forward_op = _forward_operator(backend, forward, kept, device_types)
    backward_op = _backward_operator(backend, backward, kept, device_types)

    def save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*output[1:], *inputs[:8])
        ctx.options = inputs[8:10]
        ctx.set_materialize_grads(False)  # else autograd makes zeros for what is kept beside y, as large as all of it

    def gradients(ctx: Any, grad_TD: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_TD is None:
            return (None,) * 11
        needs, saved = ctx.needs_input_grad, ctx.saved_tensors  # to be asked for once: under checkpointing it computes
        wanted = (needs[0], needs[3], any(needs[4:8]))
        x, weights, *grads = backward_op(grad_TD, *saved, *ctx.options, *wanted)
        grads = [g if wanted[2] and p is not None else None for g, p in zip(grads, saved[-4:], strict=True)]
        return x if wanted[0] else None, None, None, weights if wanted[1] else None, *grads, None, None, None

    def refuse(ctx: Any, *_: Tensor) -> None:
        raise NotImplementedError(
            f"expert_mlp has no second derivative on the {backend} backend;"
            " run it under gatelab.kernels.use('reference')"
        )

    forward_op.register_autograd(gradients, setup_context=save)
    backward_op.register_autograd(refuse)

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
        """See `gatelab.kernels.expert_mlp`, and this backend's module.

        Raises:
            NotImplementedError: in a second backward pass, which only the reference has.
        """
        tensors = (x_TD, token_index, expert_offsets, weights, up_proj, down_proj)
        if callable(activation) or x_TD.dtype in slow_dtypes:
            biases = {"up_bias": up_bias, "down_bias": down_bias}
            return reference(*tensors, **biases, activation=activation, weights_on_input=weights_on_input)
        tensors = (*tensors, up_bias, down_bias)
        keep_hidden = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        if device_types == "cpu" and not keep_hidden and is_plain(x_TD):
            # Without the operator: with one token its way through the dispatcher takes as long as the gate.
            return forward(*tensors, activation, weights_on_input, keep_hidden)[0]
        return forward_op(*tensors, activation, weights_on_input, keep_hidden)[0]

    expert_mlp.__module__ = f"gatelab.kernels.{backend}.expert_mlp"
    return expert_mlp


def _forward_operator(backend: str, forward: Callable, kept: Mapping[str, Empty], device_types: str | None) -> Any:
    def run(x_TD: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        with torch.autocast(x_TD.device.type, enabled=False):
            return forward(x_TD, *rest)

    def fake(x_TD: Tensor, token_index: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        up_proj, keep_hidden = rest[2], rest[-1]
        hidden = x_TD.new_empty(token_index.shape[0] if keep_hidden else 0, up_proj.shape[1])
        return x_TD.new_empty(x_TD.shape), hidden, *(empty(x_TD, token_index) for empty in kept.values())

    schema = f"({_ARGUMENTS}, bool keep_hidden) -> ({', '.join(['Tensor'] * (2 + len(kept)))})"
    name = f"expert_mlp_{backend}"
    operator = torch.library.custom_op(
        f"gatelab::{name}", run, mutates_args=(), device_types=device_types, schema=schema
    )
    operator.register_fake(fake)
    register_flop_formula(getattr(torch.ops.gatelab, name), get_raw=True)(flops.expert_mlp_forward)
    return operator


def _backward_operator(backend: str, backward: Callable, kept: Mapping[str, Empty], device_types: str | None) -> Any:
    first = 2 + len(kept)  # of the arguments of the forward pass, behind the gradient of y and what was kept

    def run(grad_TD: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        with torch.autocast(grad_TD.device.type, enabled=False):
            gradients = backward(grad_TD, *rest)
        # an operator cannot return None
        return tuple(grad_TD.new_empty(0) if gradient is None else gradient for gradient in gradients)

    def fake(grad_TD: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        x_TD, _, _, weights, *parameters = rest[first - 1 : first + 7]
        x_wanted, weights_wanted, experts_wanted = rest[-3:]
        gradients = [(x_TD, x_wanted), (weights, weights_wanted)]
        gradients += [(p, experts_wanted and p is not None) for p in parameters]
        return tuple(
            torch.empty_like(t, memory_format=torch.contiguous_format) if is_wanted else grad_TD.new_empty(0)
            for t, is_wanted in gradients
        )

    def count(grad_TD: Tensor, hidden: Tensor, *rest: Any, **named: Any) -> int:
        return flops.expert_mlp_backward(grad_TD, hidden, *rest[len(kept) :], **named)

    saved = ", ".join(f"Tensor {name}" for name in ("grad_TD", "hidden", *kept))
    schema = f"({saved}, {_ARGUMENTS}, {_WANTED}) -> ({', '.join(['Tensor'] * 6)})"
    name = f"expert_mlp_{backend}_backward"
    operator = torch.library.custom_op(
        f"gatelab::{name}", run, mutates_args=(), device_types=device_types, schema=schema
    )
    operator.register_fake(fake)
    register_flop_formula(getattr(torch.ops.gatelab, name), get_raw=True)(count)
    return operator
