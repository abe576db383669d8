"""Where a model of transformers finds router logits: in what modules of certain classes return.

With `output_router_logits` a model records that, and takes its balance loss from it. A tap is of such a class, keeps
hooks that are there already, and returns our logits in the place of the block's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gatelab.layers.moe import MoE
from gatelab.routers.router import Router
from gatelab.routers.routing import Routing
from gatelab.zoo.hf.blocks import router_of
from gatelab.zoo.hf.pair import Pair, evaluating
from gatelab.zoo.hf.plan import Plan

SHAPE = (2, 16)
BLOCK = "block"

View = Callable[[Router, Tensor, Routing], Any]


def logits(router: Router, x_TD: Tensor, routing: Routing) -> Tensor:
    """(T, E), as they are."""
    return routing.router_logits


def scores(router: Router, x_TD: Tensor, routing: Routing) -> Tensor:
    """(T, E) after the activation, which some models call their logits (Gemma 4)."""
    return routing.scores


class NoKeys:
    """Where a model looks for keys and its gate, a swapped one, has none: says so to whoever reads it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ValueError(
            "this gate has no product keys, of which the model takes its balance loss; "
            "leave output_router_logits off and add the aux_loss of gatelab.record"
        )


def keys(router: Router, x_TD: Tensor, routing: Routing) -> Any:
    """(2, T, n): what a score of product keys adds up to logits. Made again, as a Routing has no place for it."""
    score: Any = router.score
    return score.keys(x_TD.to(router.gate_dtype)).float() if hasattr(score, "keys") else NoKeys()


@dataclass(frozen=True)
class FirstColumns:
    """(T, n): the logits of the first n experts; the others are columns of ours alone (shared experts of Inkling)."""

    n: int

    def __call__(self, router: Router, x_TD: Tensor, routing: Routing) -> Tensor:
        return routing.router_logits[:, : self.n]


@dataclass(frozen=True)
class Emit:
    """Returns logits where a module returned its own, in the shape it did.

    Attributes:
        view: which tensor that is.
        index: in the tuple it returned, or None where it returned the tensor alone.
        by_token: it had the dimensions of the hidden states, not one of T.
    """

    view: View
    index: int | None
    by_token: bool

    def __call__(self, router: Router, hidden_states: Tensor, routing: Routing) -> Any:
        made = self.view(router, hidden_states.flatten(0, -2), routing)
        made = made.unflatten(0, hidden_states.shape[:-1]) if self.by_token else made
        return made if self.index is None else (*[None] * self.index, made)


def taps(block: nn.Module, moe: MoE, plan: Plan) -> dict[str, nn.Module]:
    """A tap for a block's router, under its own name (some models look for it), and one for the block itself.

    Found by running both: those whose output holds our raw logits.
    """
    name = router_of(block)
    candidates = {BLOCK: block} if name is None else {name: block.get_submodule(name), BLOCK: block}
    returned: dict[str, Any] = {}
    handles = [
        module.register_forward_hook(lambda _, __, output, key=key: returned.update({key: output}))
        for key, module in candidates.items()
    ]
    pair = Pair(block, moe, plan)
    try:
        with torch.no_grad(), evaluating(block, moe):
            x, theirs, ours = pair.batch(0, 1.0, SHAPE)
            pair.run_block(x, theirs)
            _, routing = pair.run_moe(x, ours)
            emits = {key: _emit(output, moe.router, x, routing) for key, output in returned.items()}
    finally:
        for handle in handles:
            handle.remove()
    return {key: _hollow(candidates[key], emit) for key, emit in emits.items() if emit is not None}


def _emit(returned: Any, router: Router, x: Tensor, routing: Routing) -> Emit | None:
    many = returned if isinstance(returned, tuple) else (returned,)
    for i, tensor in enumerate(many):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.dim() < 2:
            continue
        views: list[View] = [logits, scores, FirstColumns(tensor.shape[-1])]
        views += [keys] if hasattr(router.score, "keys") else []
        for view in views:
            ours = view(router, x.flatten(0, 1), routing)
            close = 1e-4 if tensor.dtype.itemsize >= 4 else 1e-2
            if tensor.numel() == ours.numel() and torch.allclose(
                tensor.reshape(ours.shape).float(), ours.float(), close, close
            ):
                return Emit(view, i if isinstance(returned, tuple) else None, tensor.dim() > ours.dim())
    return None


def _hollow(module: nn.Module, emit: Emit) -> nn.Module:
    """A module of the same class and hooks without tensors or children, that does nothing else."""
    tap = copy.copy(module)
    vars(tap).update(_parameters={}, _buffers={}, _modules={}, forward=emit)
    return tap
