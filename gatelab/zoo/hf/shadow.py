"""A copy of a block to experiment on: float32, random tensors, and a stub where its experts are."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gatelab.zoo.hf.capture import ExpertCall, expert_call
from gatelab.zoo.hf.errors import running
from gatelab.zoo.hf.links import holding
from gatelab.zoo.hf.looped import StubList, Watched, is_looped

BATCH, LENGTH = 2, 24  # tokens of a probe: enough to tell every rule apart, cheap beside one real forward


class Stub(nn.Module):
    """Stands for the experts: notes what it is given and answers with noise of the same shape.

    What the block does with that answer cannot depend on what experts compute, so nothing is lost, and a block of any
    size is probed for the price of its router.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.answer: Tensor = torch.empty(0)

    @property
    def module(self) -> nn.Module:
        """To put in the place of the experts."""
        return self

    def watch(self, run: Callable[[], Any], x_TD: Tensor) -> Watched:
        """Run a block on `x_TD`."""
        return run(), self.args, self.kwargs, self.answer

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.args, self.kwargs = (hidden_states.detach().clone(), *args), kwargs
        noise = torch.randn(hidden_states.shape, generator=self.generator)
        self.answer = noise.to(hidden_states.device, hidden_states.dtype)
        return self.answer


@dataclass(frozen=True)
class Call:
    """One call of a child module: its name, what it was given first, and what it returned first."""

    name: str
    given: Tensor
    returned: Tensor


@dataclass
class Sighting:
    """What one batch showed.

    Attributes:
        x: (B, S, D) what the block was given.
        output: what it returned.
        args, kwargs: what its experts were given, the hidden states first.
        answer: what the stub answered.
        calls: its other children's calls, in order.
    """

    x: Tensor
    output: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    answer: Tensor
    calls: list[Call]

    @property
    def x_TD(self) -> Tensor:
        """(T, D)."""
        return self.x.flatten(0, -2)

    @property
    def experts(self) -> ExpertCall:
        """What the experts were given, read."""
        return expert_call(self.x_TD, self.args, self.kwargs)

    def returned(self, name: str) -> tuple[Tensor, Tensor]:
        """What a child was given and what it returned, (T, ·) each."""
        call = next(call for call in self.calls if call.name == name)
        T = len(self.x_TD)
        return call.given.reshape(T, -1), call.returned.reshape(T, -1)


def stubbed(
    block: nn.Module, experts: str, hidden_size: int, generator: torch.Generator
) -> tuple[nn.Module, Stub | StubList]:
    """A copy of a block in evaluation mode, with a stub in the place of the child that holds its experts."""
    own = block.get_submodule(experts)
    stub = StubList(own, hidden_size, generator) if is_looped(own) else Stub(generator)
    memo: dict[int, Any] = {id(own): stub.module}
    return copy.deepcopy(block, memo).eval(), stub


class Shadow:
    """A block's copy, and what it does.

    Args:
        block: is not changed.
        experts: name of the child to replace by a stub.
        router: name of the child that routes.
        hidden_size: D.
    """

    def __init__(self, block: nn.Module, experts: str, router: str, hidden_size: int) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.router_name, self.experts_name, self.hidden_size = router, experts, hidden_size
        copied, self.stub = stubbed(block, experts, hidden_size, self.generator)
        self.block = copied.float()
        self.device = next(block.parameters()).device
        with torch.no_grad():
            for tensor in self.tensors.values():
                tensor.copy_(self.random(tensor))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All floating tensors of the copy by their names in the block, the experts' left out."""
        named = self.block.state_dict(keep_vars=True)
        return {name: tensor for name, tensor in named.items() if tensor.is_floating_point()}

    @property
    def routing_tensors(self) -> dict[str, Tensor]:
        """Those of the router and those of the block itself."""
        return {n: t for n, t in self.tensors.items() if n.startswith(f"{self.router_name}.") or "." not in n}

    def random(self, like: Tensor) -> Tensor:
        """Matrices that keep a vector's size; biases that sway but do not rule; scales around 1."""
        noise = torch.randn(like.shape, generator=self.generator)
        if like.squeeze().dim() >= 2:
            return (noise / math.sqrt(like.shape[-1])).to(like.device)
        return (0.2 * noise + (1.0 if like.numel() == 1 else 0.0)).to(like.device)

    @contextmanager
    def favouring(self) -> Iterator[dict[str, Tensor]]:
        """Biases that rule, by name: the copy then chooses experts whatever their scores, even where these vanish."""
        own = {n: t for n, t in self.routing_tensors.items() if t.squeeze().dim() == 1 and t.numel() > 1}
        ruling = {n: t + 9.0 * torch.rand(t.shape, generator=self.generator).to(t.device) for n, t in own.items()}
        with holding(self.block, ruling):
            yield ruling

    def batch(self, scale: float = 1.0, shift: Tensor | None = None) -> Tensor:
        """(B, S, D) of normal numbers times `scale`, plus a shift (D,) or (T, D)."""
        x = torch.randn(BATCH * LENGTH, self.hidden_size, generator=self.generator).to(self.device) * scale
        return (x if shift is None else x + shift.to(self.device)).unflatten(0, (BATCH, LENGTH))

    def see(self, x: Tensor, kwargs: Mapping[str, Any] | None = None) -> Sighting:
        """Run the copy on a batch."""
        calls: list[Call] = []

        def note(name: str):
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                given, returned = next(_tensors((*args, *kwargs.values())), None), next(_tensors((output,)), None)
                if given is not None and returned is not None:
                    calls.append(Call(name, given.detach().clone(), returned.detach().clone()))

            return hook

        def run() -> Any:
            calls.clear()
            return self.block(x.clone(), **(kwargs or {}))

        handles = [
            child.register_forward_hook(note(name), with_kwargs=True)
            for name, child in self.block.named_children()
            if name not in (self.experts_name, self.router_name)
        ]
        try:
            with torch.no_grad(), running():
                output, args, named, answer = self.stub.watch(run, x.flatten(0, -2))
        finally:
            for handle in handles:
                handle.remove()
        return Sighting(x, output, args, named, answer, calls)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)
