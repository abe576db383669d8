"""Which modules of a model are MoE blocks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from gatelab.layers.moe import MoE

EXPERTS, ROUTERS = "experts", ("router", "gate")


class Branch(nn.Module):
    """A router and experts that stand in a decoder layer itself (Gemma 4), as a block.

    The layer hands what the router returns to the experts and nothing else, so they are one; what it puts before and
    after the experts stays with the layer.
    """

    def __init__(self, router: nn.Module, experts: nn.Module) -> None:
        super().__init__()
        self.router, self.experts = router, experts

    def forward(self, hidden_states: Tensor) -> Tensor:
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        _, weights, ids = self.router(rows)
        return self.experts(rows, ids, weights).view(hidden_states.shape)


def is_block(module: nn.Module) -> bool:
    """Whether a module is an MoE block of transformers, convertible or not.

    Experts beside a router, or one of the forms that `families` knows.
    """
    children = dict(module.named_children())
    return (
        not isinstance(module, MoE)
        and not is_layer(module)
        and (
            EXPERTS in children
            or "router_gate" in children
            or {"text_moe", "vision_moe"} <= children.keys()
            or {"router", "input_linear", "output_linear"} <= children.keys()
        )
    )


def is_layer(module: nn.Module) -> bool:
    """Whether a decoder layer has router and experts among its own children, and a router with numbers."""
    children, router = dict(module.named_children()), router_of(module)
    return "self_attn" in children and EXPERTS in children and router is not None and has_tensors(children[router])


def has_tensors(module: nn.Module) -> bool:
    """Whether a module has parameters; what stands for a converted router has none."""
    return any(True for _ in module.parameters())


def router_of(block: nn.Module) -> str | None:
    """The name of the child that routes."""
    return next((name for name, _ in block.named_children() if name in ROUTERS), None)


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks below a module, by name; those of a decoder layer under the name of its experts."""
    found: dict[str, nn.Module] = {}
    ours = tuple(f"{name}." if name else "" for name, module in model.named_modules() if isinstance(module, MoE))
    for name, module in model.named_modules():
        if name.startswith(ours):
            continue  # what is around our experts may have experts too (`Between`)
        if is_layer(module):
            router: Any = module.get_submodule(router_of(module) or "")
            found[f"{name}.{EXPERTS}".removeprefix(".")] = Branch(router, module.get_submodule(EXPERTS))
        elif is_block(module):
            found[name] = module
    return found
