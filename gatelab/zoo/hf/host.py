"""A `MoE` in the place of a block, inside a Hugging Face model."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from gatelab.layers.moe import MoE
from gatelab.routers.routing import Routing
from gatelab.zoo.hf.blocks import EXPERTS, Branch, router_of
from gatelab.zoo.hf.plan import Plan, first
from gatelab.zoo.hf.tap import taps


class HostedMoE(nn.Module):
    """Takes what the block took and returns what it returned: y alone or in a tuple, in its shape.

    Of a tuple's other entries only the router logits are filled in; layers of transformers throw them away.

    Args:
        moe: the converted block.
        plan: what the block was read as.
        block: the block, for the names of its arguments and for its router.

    Attributes:
        moe: the layer.
    """

    def __init__(self, moe: MoE, plan: Plan, block: nn.Module) -> None:
        super().__init__()
        self.moe, self.token_ids, self.hidden_size = moe, plan.token_ids, plan.x.shape[-1]
        self.arguments = list(inspect.signature(block.forward).parameters)
        self.previous = plan.previous
        y = first(plan.output)
        self.rows = y.dim() == 2 and plan.x.dim() == 3
        self.flat = y.dim() == 1
        others = plan.output[1:] if isinstance(plan.output, tuple) else None
        self.others = None if others is None else [isinstance(t, Tensor) for t in others]
        found = taps(block, moe, plan)
        self.taps = tuple(found)
        for name, tap in found.items():
            self.add_module(name, tap)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(self.arguments[1:], args, strict=False)), **kwargs}
        x = hidden_states.view(-1, self.hidden_size) if hidden_states.dim() == 1 else hidden_states
        y, routing = self.moe(
            x,
            token_ids=None if self.token_ids is None else given.get(self.token_ids),
            previous=None if self.previous is None else given.get(self.previous),
        )
        for tap in self.taps:
            self.get_submodule(tap)(self.moe.router, x, routing)
        y = y.flatten() if self.flat else y.reshape(-1, self.hidden_size) if self.rows else y
        if self.previous is not None:
            return y, routing  # the caller hands the second on to the next layer, unopened
        return y if self.others is None else (y, *self._rest(routing))

    def _rest(self, routing: Routing) -> list[Tensor | None]:
        assert self.others is not None
        logits = routing.router_logits.flatten() if self.flat else routing.router_logits
        return [logits if filled else None for filled in self.others]


class HostedExperts(nn.Module):
    """The experts of a `MoE` whose router stands elsewhere in the layer; takes its Routing where weights were."""

    def __init__(self, moe: MoE) -> None:
        super().__init__()
        self.moe = moe

    def forward(self, hidden_states: Tensor, top_k_index: Any, top_k_weights: Routing) -> Tensor:
        return self.moe.experts(hidden_states, top_k_weights)


class HostedRouter(nn.Module):
    """The router of the `MoE` that `HostedExperts` holds; hands on its Routing where weights were."""

    def __init__(self, experts: HostedExperts, tap: nn.Module | None) -> None:
        super().__init__()
        # Not registered: its tensors are the experts' child's.
        self.__dict__["experts"] = experts
        self.tap = tap

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Routing, None]:
        router = self.__dict__["experts"].moe.router
        routing = router(hidden_states)
        if self.tap is not None:
            self.tap(router, hidden_states, routing)
        return routing.router_logits, routing, None


def host(model: nn.Module, name: str, block: nn.Module, moe: MoE, plan: Plan) -> None:
    """Put a converted block in its place."""
    training = model.get_submodule(name).training
    if not isinstance(block, Branch):
        model.set_submodule(name, HostedMoE(moe, plan, block).train(training))
        return
    layer = model.get_submodule(name.rpartition(".")[0])
    experts = HostedExperts(moe).train(training)
    router = router_of(layer) or ""
    tap = taps(block, moe, plan).get(router_of(block) or "")
    setattr(layer, EXPERTS, experts)
    setattr(layer, router, HostedRouter(experts, tap).train(training))


def hosted(model: nn.Module) -> dict[str, MoE]:
    """The converted layers of a model, by the names of their blocks."""
    hosts = (HostedMoE, HostedExperts)
    return {name: module.moe for name, module in model.named_modules() if isinstance(module, hosts)}
