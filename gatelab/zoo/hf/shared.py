"""What every token passes beside the experts, as ours where it is a plain expert, else as the block has it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from gatelab.layers.experts import SharedExpert
from gatelab.zoo.hf.activation import activations
from gatelab.zoo.hf.experts import Answers
from gatelab.zoo.hf.formula import Formula, formulas
from gatelab.zoo.hf.links import Link, module_links, same
from gatelab.zoo.hf.shadow import Shadow, Sighting
from gatelab.zoo.hf.stacks import Stack
from gatelab.zoo.hf.wiring import Shared
from gatelab.zoo.hf.wrappers import SharedSum, SharedTerm


def find_shared(
    shared: Sequence[Shared], offset: str | None, shadow: Shadow, seen: Sequence[Sighting], block: nn.Module, ours: str
) -> tuple[nn.Module | None, list[Link]]:
    """One module x -> y for everything in `shared` and the offset, and its links; `ours` is its name in the `MoE`."""
    if not shared and offset is None:
        return None, []
    if len(shared) == 1 and offset is None:
        return _term(shared[0], shadow, seen, block, ours)
    terms = [_term(term, shadow, seen, block, f"{ours}.terms.{i}") for i, term in enumerate(shared)]
    links = [link for _, found in terms for link in found]
    if offset is not None:
        links.append(same(f"{ours}.offset", offset))
    vector = None if offset is None else shadow.tensors[offset]
    return SharedSum([module for module, _ in terms], vector), links


def _term(
    shared: Shared, shadow: Shadow, seen: Sequence[Sighting], block: nn.Module, ours: str
) -> tuple[nn.Module, list[Link]]:
    plain = _as_expert(shared, shadow, seen, block, ours)
    if plain is not None:
        return plain
    module = copy.deepcopy(block.get_submodule(shared.name))
    if shared.factor == 1 and shared.gate is None:
        return module, module_links(ours, shared.name, module)
    gate = None if shared.gate is None else copy.deepcopy(block.get_submodule(shared.gate))
    links = module_links(f"{ours}.module", shared.name, module)
    if gate is not None and shared.gate is not None:
        links += module_links(f"{ours}.gate", shared.gate, gate)
    return SharedTerm(module, shared.factor, gate), links


def _as_expert(
    shared: Shared, shadow: Shadow, seen: Sequence[Sighting], block: nn.Module, ours: str
) -> tuple[SharedExpert, list[Link]] | None:
    """A `SharedExpert`, if the child is nothing more."""
    formula = _formula(shared, shadow, seen)
    gate = None if shared.gate is None else block.get_submodule(shared.gate)
    if formula is None or not isinstance(formula.activation, str) or shared.factor != 1:
        return None
    if gate is not None and [name for name, _ in gate.named_parameters()] != ["weight"]:
        return None
    D, I = formula.down_rows(formula.down, shadow.tensors, 0).shape
    with torch.device("meta"):
        expert = SharedExpert(D, I, formula.activation, gated_output=gate is not None)
    links = [_single(link) for link in formula.links(ours)]
    if gate is not None:
        links.append(same(f"{ours}.output_gate.weight", f"{shared.gate}.weight"))
    return expert, links


def _formula(shared: Shared, shadow: Shadow, seen: Sequence[Sighting]) -> Formula | None:
    child = shadow.block.get_submodule(shared.name)
    named = {f"{shared.name}.{name}": p.detach() for name, p in child.named_parameters()}
    if any(p.dim() != 2 for p in named.values()) or len(named) not in (2, 3):
        return None
    stacks = [Stack((name,), 1, p.shape[0]) for name, p in named.items()]
    answers = []
    for x, y in (sighting.returned(shared.name) for sighting in seen):
        one = torch.ones(len(x), 1, device=x.device)
        answers.append(Answers(x, torch.zeros_like(one, dtype=torch.int64), one, y))
    for formula in formulas(stacks, [], named, answers[0].x.shape[1], partial(activations, child, child)):
        if all(answer.given_by(formula, named) for answer in answers):
            return formula
    return None


def _single(link: Link) -> Link:
    """A link of stacked experts as that of a `SharedExpert`, which has no leading dimension and `nn.Linear`s."""
    return Link(
        f"{link.ours}.weight",
        link.theirs,
        lambda named: link.pull(named)[0],
        lambda tensor, named: link.push(tensor[None], named),
    )
