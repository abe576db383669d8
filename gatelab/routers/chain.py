"""The weight parts of a gate as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from gatelab.routers.context import Context


class Chain(nn.Module):
    """Weight parts in order; functions and modules alike."""

    def __init__(self, parts: Iterable[Callable[..., Tensor]]) -> None:
        super().__init__()
        self.parts = list(parts)
        for i, part in enumerate(self.parts):
            if isinstance(part, nn.Module):
                self.add_module(str(i), part)

    def forward(self, gates_TJ: Tensor, valid_TJ: Tensor, ctx: Context) -> Tensor:
        for part in self.parts:
            gates_TJ = part(gates_TJ, valid_TJ, ctx)
        return gates_TJ
