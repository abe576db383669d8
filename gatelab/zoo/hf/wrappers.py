"""What stands around experts in some blocks, as modules of ours."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gatelab.routers.routing import Routing


class Between(nn.Module):
    """finish(after(experts(before(x))) + shared(x)), each a chain of the block's own modules.

    Blocks whose experts work in a smaller space (Nemotron-H, Muse Spark), or that end in a norm (A.X K1).

    Args:
        before, experts, after: x (T, D) to what experts read, the experts, their output back to (T, D).
        finish: on the sum with `shared`.
        shared: what every token passes, where it stands before `finish`; else the `MoE` has it.
    """

    def __init__(
        self,
        before: Iterable[nn.Module],
        experts: nn.Module,
        after: Iterable[nn.Module],
        finish: Iterable[nn.Module] = (),
        shared: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.before, self.after, self.finish = (nn.Sequential(*chain) for chain in (before, after, finish))
        self.experts, self.shared = experts, shared

    def forward(self, x_TD: Tensor, routing: Routing) -> Tensor:
        y_TD = self.after(self.experts(self.before(x_TD), routing))
        if self.shared is not None:
            y_TD = y_TD + self.shared(x_TD)
        return self.finish(y_TD)


class SharedTerm(nn.Module):
    """factor · σ(gate(x)) · module(x), the gate being optional."""

    def __init__(self, module: nn.Module, factor: float = 1.0, gate: nn.Module | None = None) -> None:
        super().__init__()
        self.module, self.factor, self.gate = module, factor, gate

    def forward(self, x: Tensor) -> Tensor:
        y = self.module(x)
        if self.gate is not None:
            y = self.gate(x).sigmoid() * y
        return y if self.factor == 1 else y * self.factor

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


class SharedSum(nn.Module):
    """The sum of several modules that every token passes, plus a learned (D,) offset (JetMoE)."""

    def __init__(self, terms: Iterable[nn.Module], offset: Tensor | None = None) -> None:
        super().__init__()
        self.terms = nn.ModuleList(terms)
        self.offset = None if offset is None else nn.Parameter(torch.empty_like(offset, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x) if self.offset is None else self.offset.expand_as(x)
        for term in self.terms:
            y = y + term(x)
        return y
