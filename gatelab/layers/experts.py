"""Experts: E multilayer perceptrons in two stacked weights, and the one every token passes through."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelab import kernels
from gatelab.kernels.activations import resolve_activation
from gatelab.kernels.backend import load
from gatelab.layers.zero_computation import ZeroComputation
from gatelab.routers.routing import Routing
from gatelab.routers.soft_routing import SoftRouting


class Experts(nn.Module):
    """E experts, expert e being down_e(act(gate_up_e(x))), in Hugging Face's layout.

    Args:
        num_experts: E.
        hidden_size: D.
        intermediate_size: I.
        activation: `swiglu`, `geglu` (gated), `gelu`, `silu`, `relu`, `relu2`, or a callable (n, J) -> (n, I).
        bias: adds a bias to both projections.
        gated: whether J = 2·I; needed with a callable activation alone.
        zero_computation: kinds (`identity`, `zero`, `constant`) of experts without a multilayer perceptron, which
            follow as ids E…E+Z−1; a gate made for them has E + Z columns and says which in `router.zero_computation`.

    Attributes:
        gate_up_proj: (E, 2·I, D), the gate's rows first; (E, I, D) when the activation is not gated.
        down_proj: (E, D, I).
        gate_up_proj_bias, down_proj_bias: (E, 2·I) or (E, I), and (E, D); or None.

    Raises:
        ValueError: a size below 1, or an unknown activation.
    """

    def __init__(
        self,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        activation: str | Callable[[Tensor], Tensor] = "swiglu",
        bias: bool = False,
        gated: bool | None = None,
        zero_computation: Iterable[str] = (),
    ) -> None:
        super().__init__()
        sizes = {"num_experts": num_experts, "hidden_size": hidden_size, "intermediate_size": intermediate_size}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        known = resolve_activation(activation).gated
        self.gated = bool(gated) if known is None else known
        self.num_experts, self.hidden_size, self.intermediate_size = num_experts, hidden_size, intermediate_size
        self.activation = activation
        E, D, I, J = num_experts, hidden_size, intermediate_size, intermediate_size * (2 if self.gated else 1)
        self.gate_up_proj = nn.Parameter(torch.empty(E, J, D))
        self.down_proj = nn.Parameter(torch.empty(E, D, I))
        self.gate_up_proj_bias = nn.Parameter(torch.empty(E, J)) if bias else None
        self.down_proj_bias = nn.Parameter(torch.empty(E, D)) if bias else None
        kinds = tuple(zero_computation)
        self.zero_computation = ZeroComputation(kinds, hidden_size) if kinds else None
        self.reset_parameters()
        # Now, because a FLOP counter of torch knows only the formulas that were there when it was made.
        load(self.down_proj.device.type)

    def reset_parameters(self) -> None:
        """Uniform within 1/√fan-in, each expert as an `nn.Linear` would be; biases 0."""
        for weight in (self.gate_up_proj, self.down_proj):
            bound = 1 / math.sqrt(weight.shape[2])
            nn.init.uniform_(weight, -bound, bound)
        for bias in (self.gate_up_proj_bias, self.down_proj_bias):
            if bias is not None:
                nn.init.zeros_(bias)
        if self.zero_computation is not None:
            self.zero_computation.reset_parameters()

    def forward(self, x_TD: Tensor, routing: Routing | SoftRouting) -> Tensor:
        """Dispatch, apply, combine.

        Args:
            x_TD: (T, D).
            routing: over the same T tokens and E experts (E + Z with zero-computation experts).

        Returns:
            (T, D) in the dtype of `x_TD`; zeros where a token has no expert.

        Raises:
            ValueError: the routing is over another number of tokens or experts.
        """
        E, columns = self.num_experts, self.num_experts
        if self.zero_computation is not None:
            columns += len(self.zero_computation.kinds)
        if routing.num_experts != columns or routing.num_tokens != x_TD.shape[0]:
            raise ValueError(
                f"the routing is over {routing.num_tokens} tokens and {routing.num_experts} experts, the layer has "
                f"{x_TD.shape[0]} and {columns}; make router and experts for the same sizes"
            )
        if isinstance(routing, SoftRouting):
            return routing.combine(self(routing.dispatch(x_TD), routing.slots()))
        y_TD = kernels.expert_mlp(
            x_TD,
            routing.token_index,
            routing.expert_offsets[: E + 1],  # to the kernel, what follows the real experts is tail
            routing.weights,
            self.gate_up_proj,
            self.down_proj,
            up_bias=self.gate_up_proj_bias,
            down_bias=self.down_proj_bias,
            activation=self.activation,
            weights_on_input=routing.weights_on_input,
        )
        return y_TD if self.zero_computation is None else y_TD + self.zero_computation(x_TD, routing)

    def flops(self, N: int) -> int:
        """Matrix-product FLOPs of one forward with N assignments to real experts."""
        return N * 2 * self.hidden_size * self.intermediate_size * (3 if self.gated else 2)

    def extra_repr(self) -> str:
        return (
            f"num_experts={self.num_experts}, hidden_size={self.hidden_size}, "
            f"intermediate_size={self.intermediate_size}, activation={self.activation!r}"
        )


class SharedExpert(nn.Module):
    """The expert that every token passes through, beside the routed ones.

    Args:
        hidden_size, intermediate_size: D and I.
        activation: as in `Experts`, by name.
        gated_output: multiply the output by sigmoid(w · x) (Qwen1.5-MoE).

    Source: DeepSeekMoE, arXiv 2401.06066, §3.2.
    """

    def __init__(
        self, hidden_size: int, intermediate_size: int, activation: str = "swiglu", gated_output: bool = False
    ) -> None:
        super().__init__()
        self.activation = activation
        function, gated = resolve_activation(activation)
        self.function = function
        self.gate_up_proj = nn.Linear(hidden_size, intermediate_size * (2 if gated else 1), bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)
        self.output_gate = nn.Linear(hidden_size, 1, bias=False) if gated_output else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        y = self.down_proj(self.function(self.gate_up_proj(x)))
        return y if self.output_gate is None else F.sigmoid(self.output_gate(x)) * y

    def flops(self, T: int) -> int:
        """Matrix-product FLOPs of one forward over T tokens."""
        return 2 * T * sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))
