"""The experts' multilayer perceptrons on the CPU.

A callable activation runs in the slower reference, which splits a compiled graph: it cuts the rows where
`expert_offsets` says, and only this backend's operator hides that from the compiler.
"""

from typing import Any

from torch import Tensor

from gatelab.kernels._expert_operator import expert_operator
from gatelab.kernels.cpu import _expert_backward, _expert_forward
from gatelab.kernels.cpu._expert_forward import Arguments


def _forward(*inputs: Any) -> tuple[Tensor, Tensor]:
    *arguments, keep_hidden = inputs
    return _expert_forward.forward(Arguments(*arguments), keep_hidden)


def _backward(grad_TD: Tensor, hidden: Tensor, *inputs: Any) -> tuple[Tensor | None, ...]:
    *arguments, x, weights, experts = inputs
    wanted = {"x_wanted": x, "weights_wanted": weights, "experts_wanted": experts}
    return _expert_backward.backward(grad_TD, hidden, Arguments(*arguments), **wanted)


expert_mlp = expert_operator("cpu", _forward, _backward, device_types="cpu")
