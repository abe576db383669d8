"""Experts in a list that the block itself loops over (transformers 4, code that comes with a checkpoint).

Such a block tells nobody ids and weights. But its output is Σ_e w_te · expert_e(x_t) and something else: with stubs
that answer a large unit vector each, another one per expert, the weights stand in the output as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gatelab.zoo.hf.errors import UnsupportedBlock

# What a block returned, positional and named arguments of its experts, and what these answered.
Watched = tuple[Any, tuple[Any, ...], dict[str, Any], Tensor]


def is_looped(experts: nn.Module) -> bool:
    """Whether experts have no forward of their own, so that the block must call one by one."""
    return isinstance(experts, nn.ModuleList | nn.ModuleDict) and type(experts).forward is nn.Module.forward


class AsOne(nn.Module):
    """Experts in a list, called as others are: (T, D), ids and weights (T, K) to the sum (T, D)."""

    def __init__(self, experts: Iterable[nn.Module]) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)

    def forward(self, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        y_TD = torch.zeros_like(x_TD)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(ids_TK == e)
            if len(t):
                y_TD = y_TD.index_add(0, t, expert(x_TD[t]) * weights_TK[t, k, None])
        return y_TD


class StubOfMany(nn.Module):
    """One expert's place: answers what its row of a table (E, D) says."""

    def __init__(self, e: int, table: dict[str, Tensor]) -> None:
        super().__init__()
        self.e, self.table = e, table

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.table["answers"][self.e].to(hidden_states).expand(hidden_states.shape)


class StubList:
    """Stands for a list of experts.

    Args:
        experts: the list or dictionary that is replaced.
        hidden_size: D.
        generator: for answers.

    Attributes:
        module: to put in its place.
    """

    def __init__(self, experts: nn.Module, hidden_size: int, generator: torch.Generator) -> None:
        self.table: dict[str, Tensor] = {}
        self.generator, self.shape = generator, (len(list(experts.children())), hidden_size)
        self.module = copy.copy(experts)
        names = [name for name, _ in experts.named_children()]
        vars(self.module)["_modules"] = {name: StubOfMany(e, self.table) for e, name in enumerate(names)}
        self.most = 0  # experts of a token

    def watch(self, run: Callable[[], Any], x_TD: Tensor) -> Watched:
        """Run a block several times, on `x_TD` every time.

        Raises:
            UnsupportedBlock: tokens have different numbers of experts.
        """
        E, D = self.shape
        # Whatever else is in the output is lost beside so large a number; a power of two, so that nothing is rounded.
        large = 2.0**8 if x_TD.dtype == torch.float16 else 2.0**100
        columns = []
        for start in range(0, E, D):  # D experts at a time have a unit vector of their own
            units = torch.zeros(E, D)
            units[start : start + D].fill_diagonal_(large)
            columns.append(self._answer(run, units)[0][:, : min(D, E - start)])
        nothing_TD, _ = self._answer(run, torch.zeros(E, D))
        loud_TE, quiet_TE = torch.cat(columns, 1), nothing_TD[:, torch.arange(E) % D]
        ids, weights = self._chosen((loud_TE - quiet_TE) / large)
        y_TD, output = self._answer(run, torch.randn(E, D, generator=self.generator))
        return output, (x_TD, ids, weights.to(x_TD.dtype)), {}, y_TD - nothing_TD

    def _answer(self, run: Callable[[], Any], answers: Tensor) -> tuple[Tensor, Any]:
        self.table["answers"] = answers
        output = run()
        y = output[0] if isinstance(output, tuple) else output
        return y.reshape(-1, self.shape[1]).float(), output

    def _chosen(self, weights_TE: Tensor) -> tuple[Tensor, Tensor]:
        most = int((weights_TE != 0).sum(1).max())
        self.most = self.most or most  # the first batch is a plain one, on which no weight vanishes
        if most > self.most:
            raise UnsupportedBlock(f"it gives some tokens {self.most} experts and others {most}")
        sizes, ids = weights_TE.abs().topk(self.most, dim=1)
        return torch.where(sizes > 0, ids, -1), weights_TE.gather(1, ids)
