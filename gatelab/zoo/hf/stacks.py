"""The matrices and vectors of a block's experts, one per expert, however they are stored."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from gatelab.zoo.hf.errors import UnsupportedBlock


@dataclass(frozen=True)
class Stack:
    """One tensor per expert: a (E, …) parameter, a (E·rows, …) one, or a parameter each.

    Attributes:
        names: of the parameters.
        num_experts: E.
        rows: of one expert in a flattened parameter; None = not flattened.
    """

    names: Sequence[str]
    num_experts: int
    rows: int | None = None

    def expert(self, tensors: Mapping[str, Tensor], e: int) -> Tensor:
        """The matrix or vector of expert e."""
        if len(self.names) > 1:
            return tensors[self.names[e]]
        whole = tensors[self.names[0]]
        return whole[e] if self.rows is None else whole[e * self.rows : (e + 1) * self.rows]


def find_stacks(experts: nn.Module, prefix: str, num_experts: int | None) -> tuple[list[Stack], list[Stack]]:
    """Matrices and vectors of a module's experts, E of each.

    Args:
        experts: the module.
        prefix: in front of its tensors' names.
        num_experts: E, where something else tells; else what most stacked parameters have.

    Returns:
        Stacks of matrices, stacks of vectors. What belongs to no expert is in neither.

    Raises:
        UnsupportedBlock: experts are not of one size.
    """
    named = dict(experts.named_parameters())
    singles = _numbered(named)
    if singles:
        for names in singles:
            if any(named[name].shape != named[names[0]].shape for name in names):
                raise UnsupportedBlock(f"its experts differ in size: {names[0]} is not of the shape of every other")
        stacks = [Stack(tuple(prefix + n for n in names), len(names)) for names in singles]
        by_dim = {stack: named[names[0]].dim() for stack, names in zip(stacks, singles, strict=True)}
    else:
        leading = [t.shape[0] for t in named.values() if t.dim() == 3]
        E = min(leading) if leading else num_experts
        by_dim = {}
        for name, tensor in named.items():
            if E is None or tensor.dim() < 2:
                continue
            if tensor.dim() == 3 or tensor.shape[0] == E:
                by_dim[Stack((prefix + name,), min(E, tensor.shape[0]))] = tensor.dim() - 1
            elif tensor.shape[0] % E == 0:
                by_dim[Stack((prefix + name,), E, tensor.shape[0] // E)] = 2
    return [s for s, dim in by_dim.items() if dim == 2], [s for s, dim in by_dim.items() if dim == 1]


def _numbered(names: Iterable[str]) -> list[list[str]]:
    """Names that differ in one number alone, grouped, in its order; [] unless that covers every name."""
    groups: dict[tuple[str, str], dict[int, str]] = {}
    for name in names:
        if (match := re.match(r"(?P<head>[a-z_.]*?)(?P<number>\d+)\.(?P<rest>.+)", name)) is None:
            return []
        groups.setdefault((match["head"], match["rest"]), {})[int(match["number"])] = name
    complete = all(sorted(group) == list(range(len(group))) and len(group) > 1 for group in groups.values())
    return [[group[i] for i in range(len(group))] for group in groups.values()] if complete else []
