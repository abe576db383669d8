"""The activation of a block's experts, by name where it has one here."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from gatelab.kernels.activations import ACTIVATIONS
from gatelab.zoo.activations import ClampedSwiGLU
from gatelab.zoo.hf.errors import UnsupportedBlock

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class GLU:
    """act(gate) · up; (n, 2·I) to (n, I), gate first."""

    act: Function

    def __call__(self, h: Tensor) -> Tensor:
        gate, up = h.chunk(2, dim=-1)
        return self.act(gate) * up


class OwnGate:
    """gate and up as the block itself combines them (`_apply_gate`), for formulas without a name here."""

    def __init__(self, experts: nn.Module, interleaved: bool) -> None:
        self.module, self.interleaved = _hollow(experts), interleaved

    def __call__(self, h: Tensor) -> Tensor:
        if self.interleaved:
            h = torch.stack(h.chunk(2, dim=-1), dim=-1).flatten(-2)
        return self.module._apply_gate(h)

    def __repr__(self) -> str:
        return f"{type(self.module).__name__}._apply_gate"


def activations(
    experts: nn.Module, block: nn.Module, gated: bool, interleaved: bool, named: bool
) -> Sequence[Function | str]:
    """What may lie between a block's two matrices: names, or the block's own functions.

    A block that shows its activation leaves no choice but its name; of one that does not, every name is tried.
    """
    own = list(_own(experts, block, gated, interleaved))
    if not named:
        return own
    if not own:
        return [name for name, known in ACTIVATIONS.items() if known.gated is gated]
    numbers = [v for v in numbers_of(experts).values() if v > 0]
    return [found for function in own if (found := _name(function, gated, numbers)) is not None]


def activation_of(experts: nn.Module, block: nn.Module, *, gated: bool) -> str | Function:
    """The activation of a block that shows it, by name if it has one.

    Raises:
        UnsupportedBlock: it does not show it.
    """
    for named in (True, False):
        for found in activations(experts, block, gated, interleaved=False, named=named):
            return found
    raise UnsupportedBlock("the activation of its experts is nowhere to be seen")


def numbers_of(module: nn.Module) -> dict[str, float]:
    """A module's attributes that are numbers, by name."""
    return {
        name: float(value)
        for name, value in vars(module).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _own(experts: nn.Module, block: nn.Module, gated: bool, interleaved: bool) -> Iterator[Function]:
    if gated and hasattr(experts, "_apply_gate"):
        yield OwnGate(experts, interleaved)
        return
    for module in dict.fromkeys((*experts.modules(), block)):
        for name, value in (*vars(module).items(), *module.named_children()):
            if "act" in name and callable(value) and not any(True for _ in _parameters(value)):
                act = cast("Function", value)
                yield GLU(act) if gated else act


def _parameters(value: Any) -> Iterator[Tensor]:
    return value.parameters() if isinstance(value, nn.Module) else iter(())


def _name(function: Function, gated: bool, numbers: list[float]) -> str | Function | None:
    """The known activation that gives the same on numbers small and large; None if none does."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(64, 16, generator=generator) * torch.tensor([1.0, 30.0]).repeat(32)[:, None]
    try:
        target = function(h)
    except (AttributeError, TypeError, RuntimeError):
        return None
    for name, known in ACTIVATIONS.items():
        if known.gated is gated and _equal(known.function(h), target):
            return name
    if gated:
        for limit, alpha, offset in itertools.product(numbers, [1.0, *numbers], (0.0, 1.0)):
            if _equal((clamped := ClampedSwiGLU(limit, alpha, offset))(h), target):
                return clamped
    return None


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def _hollow(module: nn.Module) -> Any:
    """A copy without tensors, for a method that needs none."""
    clone = copy.copy(module)
    vars(clone).update(_parameters={}, _buffers={}, _modules=dict(module._modules))
    return clone
