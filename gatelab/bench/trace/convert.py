"""A model's MoE blocks as ours, one by one; those that do not convert stay as they are and are named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gatelab.bench.errors import BadInput
from gatelab.layers.moe import MoE
from gatelab.zoo.hf.blocks import find_blocks
from gatelab.zoo.hf.convert import convert
from gatelab.zoo.hf.errors import UnsupportedBlock
from gatelab.zoo.hf.host import host


@dataclass(frozen=True)
class Layer:
    """A converted block: its name in the model, its class there, and what it became."""

    name: str
    block: str
    moe: MoE

    @property
    def num_columns(self) -> int:
        """Experts of the gate, those that compute nothing included."""
        return self.moe.router.num_experts

    @property
    def num_experts(self) -> int:
        """E, those that compute."""
        return self.num_columns - len(self.moe.router.zero_computation)

    @property
    def gate(self) -> str:
        """How it routes, in a line."""
        router = self.moe.router
        parts = [router.score, router.activation, router.select, *router.weight.parts, *router.balance]
        k = getattr(router.select, "k", None)
        names = [getattr(part, "__name__", type(part).__name__) for part in parts]
        return " · ".join([*names, f"top {k}"] if k else names)


def convert_blocks(model: Any, on_progress: Callable[[int, int], None]) -> tuple[list[Layer], dict[str, str]]:
    """Convert what can be converted, in place and block by block, so that only one is in memory twice.

    Returns:
        The converted layers in the order of the model; and why each of the others was not, by name. What only holds
        blocks that were converted is not among them.

    Raises:
        BadInput: there is no MoE block, or none that converts.
    """
    kind, blocks = type(model).__name__, find_blocks(model)
    if not blocks:
        raise BadInput(f"MODEL_DIR holds a {kind}, which has no Mixture-of-Experts layer; there is no routing to trace")
    layers: list[Layer] = []
    left_out: dict[str, str] = {}
    for done, name in enumerate(list(blocks)):
        on_progress(done, done + len(blocks))
        block = blocks.pop(name)
        try:
            moe, plan = convert(block)
        except UnsupportedBlock as error:  # NotOneLayer among them
            left_out[name] = str(error)
        else:
            host(model, name, block, moe, plan)
            layers.append(Layer(name, type(block).__name__, moe))
    if not layers:
        name, reason = next(iter(left_out.items()))
        raise BadInput(f"none of the MoE layers of this {kind} can be converted; {name}: {reason}")
    held = {name for name in left_out if any(layer.name.startswith(f"{name}.") for layer in layers)}
    return layers, {name: reason for name, reason in left_out.items() if name not in held}
