"""A gate that adds the hidden state of the layer before (Zaya)."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gatelab.layers.moe import MoE
from gatelab.routers.balance import ProportionalBias
from gatelab.routers.context import Context
from gatelab.routers.router import Router
from gatelab.routers.routing import Routing
from gatelab.routers.select import TopK
from gatelab.zoo.hf.activation import numbers_of
from gatelab.zoo.hf.blocks import EXPERTS
from gatelab.zoo.hf.errors import running
from gatelab.zoo.hf.experts import Answers, find_experts
from gatelab.zoo.hf.links import module_links, same, tensors
from gatelab.zoo.hf.plan import Plan

PREVIOUS = "prev_router_hidden_states"


@dataclass(frozen=True, eq=False)
class CarriedRouting(Routing):
    """A Routing that hands `state` (T, R), with its gradient, to the next layer's gate."""

    state: Tensor | None = None


pytree.register_dataclass(CarriedRouting)


class CarryingScore(nn.Module):
    """h = W x + b, plus s · h' of the layer before where there is one; z = a small network of h.

    Args:
        down_proj: W and b, D to R.
        mlp: R to E.
        scale: s (R,), or None for a first layer.
        num_experts: E.
    """

    def __init__(self, down_proj: nn.Linear, mlp: nn.Module, scale: Tensor | None, num_experts: int) -> None:
        super().__init__()
        self.down_proj, self.mlp = down_proj, mlp
        self.scale = None if scale is None else nn.Parameter(torch.empty_like(scale, device="meta"))
        self.hidden_size, self.num_experts = down_proj.in_features, num_experts

    def state(self, ctx: Context) -> Tensor:
        """(T, R), what the next layer is handed."""
        state_TR = self.down_proj(ctx.hidden_TD)
        before = getattr(ctx.previous, "state", None)
        return state_TR if before is None or self.scale is None else state_TR + before.to(state_TR.dtype) * self.scale

    def forward(self, ctx: Context) -> Tensor:
        # A note on the context, which knows no such field: the router below reads it after the call.
        ctx.carried = self.state(ctx)  # type: ignore[attr-defined]
        return self.mlp(ctx.carried)  # type: ignore[attr-defined]  # from the line above


class CarryingRouter(Router):
    """A `Router` whose score leaves a state for the next layer; hand its Routing on as `previous`."""

    def _route(self, ctx: Context, forced: Tensor | None) -> Routing:
        routing = super()._route(ctx, forced)
        own = {field.name: getattr(routing, field.name) for field in fields(Routing)}
        return CarriedRouting(**own, state=ctx.carried)  # type: ignore[attr-defined]  # left there by the score


def read_carrying_gate(block: nn.Module) -> Plan | None:
    """Softmax over E experts and one that does nothing; top-k of p + b; w = p."""
    named = tensors(block)
    if not {"gate.down_proj.weight", "gate.router_mlp.out_proj.weight", "gate.balancing_biases"} <= named.keys():
        return None
    gate, own = block.get_submodule("gate"), block.get_submodule(EXPERTS)
    R, D = named["gate.down_proj.weight"].shape
    columns, K = named["gate.balancing_biases"].shape[0], int(numbers_of(gate)["top_k"])
    E = columns - 1
    x = torch.randn(8, D, generator=torch.Generator().manual_seed(0)).to(next(own.parameters()))
    ids = torch.arange(8, device=x.device)[:, None] % E
    one = torch.ones(8, 1, device=x.device, dtype=x.dtype)
    with torch.no_grad(), running():
        answers = [Answers(s * x, ids, one, own(s * x, ids, one)) for s in (1.0, 25.0)]
    experts, links, kinds = find_experts(own, f"{EXPERTS}.", block, answers, columns, kinds=("zero",))
    down, mlp = (copy.deepcopy(gate.get_submodule(name)) for name in ("down_proj", "router_mlp"))
    assert isinstance(down, nn.Linear)
    with torch.device("meta"):
        router = CarryingRouter(
            score=CarryingScore(down, mlp, named.get("gate.router_states_scale"), columns),
            select=TopK(K),
            balance=[ProportionalBias(columns, K, 1e-3, E, K * E / columns)],
            zero_computation=kinds,
        )
    links += [
        *module_links("router.score.down_proj", "gate.down_proj", down),
        *module_links("router.score.mlp", "gate.router_mlp", mlp),
        same("router.balance.0.bias", "gate.balancing_biases"),
    ]
    if "gate.router_states_scale" in named:
        links.append(same("router.score.scale", "gate.router_states_scale"))
    x_BSD = x[None]
    output = (x_BSD, x_BSD.new_zeros(1, len(x), R))
    return Plan(MoE(router, experts), links, x_BSD, output, compares_experts=False, previous=PREVIOUS)
