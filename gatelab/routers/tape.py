"""Recording what the gates of a model did in a step: for their losses, and to move their state afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gatelab.routers.router import Router
from gatelab.routers.routing import Routing, Summary

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


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
        """Append one forward."""
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
    names = {module: name for name, module in model.named_modules() if isinstance(module, Router)}
    tape = Tape(names)
    for router in names:
        router.tapes = (*router.tapes, tape)
    try:
        yield tape
    finally:
        for router in names:
            router.tapes = tuple(t for t in router.tapes if t is not tape)


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
