"""Recording what the gates of a model did in a step: for their losses, and to move their state afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gatelab.routers.router import Router
from gatelab.routers.routing import Routing, Summary

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.optim import Optimizer


class Tape:
    """The training forwards of a model's gates, in call order. Evaluation and recomputation are not on it.

    Attributes:
        entries: (router, routing) pairs.
        names: the routers' names inside the recorded model.
    """

    def __init__(self, names: dict[Router, str]) -> None:
        self.entries: list[tuple[Router, Routing]] = []
        self.names = names

    def add(self, router: Router, routing: Routing) -> None:
        """Append one forward.

        Raises:
            RuntimeError: the router is a replica, whose state nobody would see.
        """
        _check_own(router, self.names)
        self.entries.append((router, routing))

    @property
    def routings(self) -> dict[str, list[Routing]]:
        """Router name -> its routings, one per forward. Layers never mix: imbalances of two layers could cancel."""
        found: dict[str, list[Routing]] = {}
        for router, routing in self.entries:
            found.setdefault(self.names[router], []).append(routing)
        return found

    @property
    def aux_loss(self) -> Tensor:
        """(), the sum of every routing's `aux_loss`, each layer's computed by itself.

        Raises:
            RuntimeError: a gate whose parameters want a gradient ran under `no_grad`, as reentrant activation
                checkpointing does: its loss would silently have no gradient.
        """
        total: Tensor | None = None
        for router, routing in self.entries:
            loss = routing.aux_loss
            learns = any(p.requires_grad for p in router.parameters())
            if routing.losses and learns and torch.is_grad_enabled() and not routing.router_logits.requires_grad:
                raise RuntimeError(
                    f"aux_loss of {self.names[router]!r} has no gradient, its forward ran under no_grad; "
                    "checkpoint with use_reentrant=False"
                )
            total = loss if total is None else total + loss.to(total.device)
        return torch.zeros(()) if total is None else total


@contextlib.contextmanager
def record(model: nn.Module) -> Iterator[Tape]:
    """Record every gate below `model`, wherever it hides.

    with gatelab.record(model) as tape:
        loss = task(model(x)) + tape.aux_loss
    loss.backward(); optimizer.step()
    gatelab.update_routers(tape)
    """
    tape = Tape({router: name for name, router in _routers(model).items()})
    for router in tape.names:
        router.listeners = (*router.listeners, tape)
    try:
        yield tape
    finally:
        for router in tape.names:
            router.listeners = tuple(listener for listener in router.listeners if listener is not tape)


def update_routers(*tapes: Tape, group: ProcessGroup | None = None) -> None:
    """Move the state of every recorded gate, once per optimizer step.

    Args:
        *tapes: one per micro-batch of the step.
        group: ranks to reduce over first: counts are summed, statistics averaged. All must have recorded the same
            number of forwards.
    """
    recorded: dict[Router, list[Summary]] = {}
    for tape in tapes:
        for router, routing in tape.entries:
            recorded.setdefault(router, []).append(routing.summary())
    _update(recorded, group)


class attach:
    """Move the state of a model's gates by itself, after every step of an optimizer.

        handle = gatelab.attach(optimizer, model)

    For training loops that are not one's own. The forwards since the last step are taken together, so gradient
    accumulation needs nothing more. Losses are not its business: the model adds `record(...).aux_loss` itself.

    Args:
        optimizer: whose steps count.
        model: every gate below it.
        group: as for `update_routers`.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module, group: ProcessGroup | None = None) -> None:
        self._summaries: dict[Router, list[Summary]] = {}
        self._group = group
        self._routers = list(_routers(model).values())
        for router in self._routers:
            router.listeners = (*router.listeners, self)
        self._hook = optimizer.register_step_post_hook(self._after_step)

    def add(self, router: Router, routing: Routing) -> None:
        """Keep what an update needs of one forward."""
        _check_own(router, self._routers)
        self._summaries.setdefault(router, []).append(routing.summary())

    def _after_step(self, *_: object) -> None:
        recorded, self._summaries = self._summaries, {}
        _update(recorded, self._group)

    def remove(self) -> None:
        """Detach again."""
        self._hook.remove()
        for router in self._routers:
            router.listeners = tuple(listener for listener in router.listeners if listener is not self)


def _check_own(router: Router, own: Collection[Router]) -> None:
    if router not in own:
        raise RuntimeError(
            "a gate trains that is not the recorded model's own, as in a replica of torch.nn.DataParallel; its state "
            "would be lost: use DistributedDataParallel"
        )


def _routers(model: nn.Module) -> dict[str, Router]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Router)}


def _update(recorded: dict[Router, list[Summary]], group: ProcessGroup | None) -> None:
    for router, summaries in recorded.items():
        if group is not None and router.guarantees.stateful:
            summaries = _reduced(summaries, group)
        router.update(summaries)


def _reduced(summaries: Sequence[Summary], group: ProcessGroup) -> list[Summary]:
    import torch.distributed as dist

    def reduced(value: Tensor, op: dist.ReduceOp.RedOpType) -> Tensor:
        value = value.clone()
        dist.all_reduce(value, op=op, group=group)
        return value

    world = dist.get_world_size(group)
    return [
        Summary(
            tokens_per_expert=reduced(s.tokens_per_expert, dist.ReduceOp.SUM),
            requested=reduced(s.requested, dist.ReduceOp.SUM),
            num_tokens=reduced(s.num_tokens, dist.ReduceOp.SUM),
            statistics={
                name: reduced(value.float(), dist.ReduceOp.SUM) / world for name, value in sorted(s.statistics.items())
            },
        )
        for s in summaries
    ]
