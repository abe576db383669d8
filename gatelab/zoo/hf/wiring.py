"""What a block does around its experts: what stands before and after them, and what is added to their output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gatelab.zoo.hf.errors import UnsupportedBlock
from gatelab.zoo.hf.shadow import Call, Sighting

CLOSE = 1e-5


@dataclass(frozen=True)
class Shared:
    """A child that every token passes, times `factor`, and times σ of the child `gate` if there is one."""

    name: str
    factor: float
    gate: str | None = None


@dataclass(frozen=True)
class Wiring:
    """y = finish(factor · after(experts(before(x))) + Σ shared(x) + offset).

    Attributes:
        before, after, finish: names of children, in order of their calls.
        factor: of the experts' output.
        shared: children that every token passes.
        offset: name of a (D,) tensor of the block that is added, or None.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    finish: tuple[str, ...]
    factor: float
    shared: tuple[Shared, ...]
    offset: str | None = None


def find_wiring(seen: Sighting, vectors: Mapping[str, Tensor]) -> Wiring:
    """How the children of a block work together.

    Args:
        seen: a batch and the calls it made.
        vectors: (D,) tensors of the block itself, by name.

    Raises:
        UnsupportedBlock: the output is no sum of what the children returned.
    """
    calls = [call for call in seen.calls if not _equal(call.given, call.returned)]
    x, y = seen.x_TD, _rows(seen.output[0] if isinstance(seen.output, tuple) else seen.output, seen.x_TD.shape[1])
    before = _chain_back(calls, seen.experts.given, x)
    after, routed = _chain_on(calls, seen.experts.summed(seen.answer))
    finish: tuple[str, ...] = ()
    last = next((call for call in calls if _equal(call.returned, y)), None)
    if last is not None and last.name not in after:
        finish, y = (last.name,), _rows(last.given, y.shape[1])
    free = [call for call in calls if call.name not in {*before, *after, *finish} and _equal(call.given, x)]
    terms: dict[tuple[str, str | None], Tensor] = {("", None): routed}
    gates = {call.name: _rows(call.returned, 1) for call in free if call.returned.shape[-1] == 1}
    for call in free:
        if call.returned.shape[-1] == y.shape[1] and call.name not in gates:
            terms[call.name, None] = _rows(call.returned, y.shape[1])
            terms |= {(call.name, g): terms[call.name, None] * gate.sigmoid() for g, gate in gates.items()}
    terms |= {(name, "+"): vector.expand_as(y) for name, vector in vectors.items()}
    matrix = torch.stack([term.flatten() for term in terms.values()], dim=1).double()
    factors = torch.linalg.lstsq(matrix, y.flatten().double()[:, None]).solution[:, 0]
    if float((matrix @ factors - y.flatten()).abs().max()) > CLOSE * float(y.abs().max()):
        raise UnsupportedBlock("its output is no sum of its experts' and its other children's outputs")
    used = {term: _whole(float(f)) for term, f in zip(terms, factors, strict=True) if abs(f) > CLOSE}
    factor = used.pop(("", None), None)
    if factor is None:
        raise UnsupportedBlock("its output does not depend on its experts")
    offset = next((name for name, kind in used if kind == "+"), None)
    shared = tuple(Shared(name, f, gate) for (name, gate), f in used.items() if gate != "+")
    return Wiring(before, after, finish, factor, shared, offset)


def _chain_back(calls: list[Call], given: Tensor, x: Tensor) -> tuple[str, ...]:
    """Names of the children between x and what the experts read."""
    chain: list[str] = []
    while not _equal(given, x):
        call = next((c for c in calls if _equal(c.returned, given) and c.name not in chain), None)
        if call is None:
            raise UnsupportedBlock("what its experts read is neither its input nor what a child made of it")
        chain.insert(0, call.name)
        given = call.given
    return tuple(chain)


def _chain_on(calls: list[Call], answer: Tensor) -> tuple[tuple[str, ...], Tensor]:
    """Names of the children that the experts' answer passes, and what comes out."""
    chain: list[str] = []
    while (call := next((c for c in calls if _equal(c.given, answer)), None)) is not None:
        chain.append(call.name)
        answer = call.returned
    return tuple(chain), _rows(answer, answer.shape[-1])


def _rows(tensor: Tensor, width: int) -> Tensor:
    return tensor.reshape(-1, width)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.numel() == b.numel() and a.shape[-1] == b.shape[-1] and torch.equal(a.flatten(), b.flatten())


def _whole(factor: float) -> float:
    """A measured 1 is 1."""
    return 1.0 if abs(factor - 1) < CLOSE else factor
