"""Reading a block: its wiring, its gate, its experts."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from gatelab.layers.moe import MoE
from gatelab.routers.balance import InputJitter, ProportionalBias, SignBias
from gatelab.routers.router import Router
from gatelab.routers.select import HashTable
from gatelab.zoo.hf.activation import numbers_of
from gatelab.zoo.hf.blocks import EXPERTS, router_of
from gatelab.zoo.hf.capture import Choices
from gatelab.zoo.hf.errors import UnsupportedBlock, running
from gatelab.zoo.hf.experts import Answers, find_experts
from gatelab.zoo.hf.families import READERS
from gatelab.zoo.hf.gate import Evidence, find_gate, groups_of
from gatelab.zoo.hf.links import Link, module_links
from gatelab.zoo.hf.looped import AsOne, is_looped
from gatelab.zoo.hf.plan import Plan
from gatelab.zoo.hf.shadow import BATCH, LENGTH, Shadow, Sighting
from gatelab.zoo.hf.shared import find_shared
from gatelab.zoo.hf.wiring import Wiring, find_wiring
from gatelab.zoo.hf.wrappers import Between

TOKEN_IDS = "input_ids"
SCALES = (1.0, 25.0, 4.0, 0.1)  # of the hidden states; the first two decide what experts compute
EXTREME = 100.0


def read(block: nn.Module) -> Plan:
    """Take a block apart: by a reader of its kind if there is one, else by its structure.

    Raises:
        UnsupportedBlock: it works in a way that is not understood.
    """
    for reader in READERS:
        if (plan := reader(block)) is not None:
            return plan
    return read_structure(block)


def read_structure(block: nn.Module) -> Plan:
    """Take apart a block with a router and experts.

    Raises:
        UnsupportedBlock: it works in a way that is not understood.
    """
    children = dict(block.named_children())
    router = router_of(block)
    if EXPERTS not in children or router is None:
        raise UnsupportedBlock("it has no children that are its router and its experts")
    shadow = Shadow(block, EXPERTS, router, hidden_size(children[router]))
    seen, evidence = observe(shadow, block)
    vectors = {n: t for n, t in shadow.routing_tensors.items() if "." not in n and t.shape == (shadow.hidden_size,)}
    wiring = find_wiring(seen[0], vectors)
    gate = find_gate(evidence.scaled(wiring.factor))
    whole = AsOne(children[EXPERTS].children()) if is_looped(children[EXPERTS]) else children[EXPERTS]
    answers = [ask(whole, sighting) for sighting in seen[:2]]
    columns = gate.router.num_experts
    experts, expert_links, kinds = find_experts(children[EXPERTS], f"{EXPERTS}.", block, answers, columns)
    finish_router(gate.router, evidence, kinds, weights_on_input=answers[0].weights_on_input)
    shared, shared_links = find_shared(wiring.shared, wiring.offset, shadow, seen[:2], block, "shared")
    links = [*gate.links, *expert_links, *shared_links]
    if wiring.before or wiring.after or wiring.finish:
        experts, links = between(block, wiring, experts, shared, links)
        shared = None if wiring.finish else shared
    moe = MoE(gate.router.to("meta"), experts, shared)
    table = gate.router.select.table if isinstance(gate.router.select, HashTable) else None
    return Plan(
        moe,
        links,
        seen[0].x,
        seen[0].output,
        token_ids=None if table is None else TOKEN_IDS,
        vocabulary=0 if table is None else table.shape[0],
    )


def hidden_size(router: nn.Module) -> int:
    """D: what the router's matrices read."""
    widths = {p.shape[1] for p in router.parameters() if p.dim() == 2 and p.shape[0] > 1}
    if len(widths) != 1:
        raise UnsupportedBlock(f"its router has matrices of {len(widths)} widths; one is understood")
    return widths.pop()


def observe(shadow: Shadow, block: nn.Module) -> tuple[list[Sighting], Evidence]:
    """Run the copy on hidden states of several sizes, and on some that make a gate show what it seldom does.

    Those make every logit low, give the best expert poor neighbours, or fill an expert up.
    """
    numbers = {**numbers_of(block), **numbers_of(block.get_submodule(shadow.router_name))}
    groups = groups_of(numbers)
    batches = [shadow.batch(scale) for scale in SCALES]
    for matrix in shadow.routing_tensors.values():
        if matrix.dim() == 2 and matrix.shape[1] == shadow.hidden_size:
            back_DE = torch.linalg.pinv(matrix.detach().cpu().double()).float()
            batches += [shadow.batch(0.3, -depth * back_DE.sum(1)) for depth in (15.0, 40.0)]
            if groups is not None and len(matrix) % groups[0] == 0:
                batches += [shadow.batch(0.0, logits @ back_DE.T) for logits in lonely(len(matrix), groups[0])]
    for capacity in (int(number) for name, number in numbers.items() if "capacity" in name and number >= 1):
        batches.append(shadow.batch()[:, :1].expand(-1, 2 * capacity + 1, -1))  # one token over and over
    batches.append(shadow.batch(EXTREME))
    seen: list[Sighting] = []

    def choices(x: Tensor, tensors: Mapping[str, Tensor]) -> Choices:
        ids = token_ids(shadow, block, x)
        seen.append(shadow.see(x, {} if ids is None else {TOKEN_IDS: ids}))
        call = seen[-1].experts
        return Choices(x, call.ids, call.weights, ids, tensors)

    chosen = [choices(x, {}) for x in batches]
    with shadow.favouring() as ruling:
        ruled = [choices(shadow.batch(scale), ruling) for scale in SCALES]
    _check_distinct(torch.cat([batch.ids for batch in (*chosen, *ruled)]))
    tables = {n: t for n, t in shadow.block.state_dict().items() if not t.is_floating_point()}
    return seen, Evidence(chosen[:-1], chosen[-1], ruled, {**shadow.routing_tensors, **tables}, numbers)


def lonely(num_experts: int, num_groups: int) -> Iterator[Tensor]:
    """(T, E) logits of which each token's best is alone in its group: the others' two best are more together.

    First as exponentials (softmax), then as sigmoids, with a gap between others that biases do not fill.
    """
    best_T = torch.arange(BATCH * LENGTH) % num_experts
    group_E = torch.arange(num_experts) // (num_experts // num_groups)
    for best, others in ((0.5, 0.0), (6.0, 2.0)):
        logits_TE = torch.where(group_E == group_E[best_T][:, None], -6.0, others)
        yield logits_TE.scatter(1, best_T[:, None], best)


def _check_distinct(ids_NK: Tensor) -> None:
    ordered = ids_NK.sort(dim=1).values
    if not bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any()):
        return
    if ids_NK.unique().tolist() == [0, 1]:
        raise UnsupportedBlock(
            "it hands a mask to experts that want ids, so that in this release experts 0 and 1 get every token"
        )
    raise UnsupportedBlock(f"it gives a token the same expert twice, as in {ids_NK[0].tolist()}")


def token_ids(shadow: Shadow, block: nn.Module, x: Tensor) -> Tensor | None:
    """Random (B, S) ids for a block that takes them and has a table to look them up in."""
    router = block.get_submodule(shadow.router_name)
    tables = [t for t in router.buffers() if t.dim() == 2 and not t.is_floating_point()]
    if not tables or TOKEN_IDS not in inspect.signature(block.forward).parameters:
        return None
    return torch.randint(tables[0].shape[0], x.shape[:-1], generator=shadow.generator).to(x.device)


def ask(experts: nn.Module, seen: Sighting) -> Answers:
    """What the real experts answer to what the stub was given."""
    dtype = next(experts.parameters()).dtype

    def native(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    with torch.no_grad(), running():
        answer = experts(*map(native, seen.args), **{name: native(value) for name, value in seen.kwargs.items()})
    call = seen.experts
    y = call.summed(answer)
    return Answers(native(call.given), call.ids, native(call.weights), y, call.weights_on_input)


def finish_router(router: Router, evidence: Evidence, kinds: tuple[str, ...], *, weights_on_input: bool) -> None:
    """What evaluation does not show: kinds of experts, and what acts in training alone."""
    router.zero_computation, router.weights_on_input = kinds, weights_on_input
    E, K = router.num_experts, evidence.k
    balance = cast("nn.ModuleList", router.balance)
    if kinds and len(balance) and isinstance(balance[0], SignBias):
        real = E - len(kinds)
        balance[0] = ProportionalBias(E, K, rate=1e-3, num_real=real, expected=K * real / E)
    noise = [eps for eps in evidence.named("jitter") if eps not in (0, getattr(router.select, "eps", 0))]
    if noise:
        balance.append(InputJitter(noise[0]))


def between(
    block: nn.Module, wiring: Wiring, experts: nn.Module, shared: nn.Module | None, links: Iterable[Link]
) -> tuple[Between, list[Link]]:
    """Experts with the block's own modules around them, and the links by their new names."""
    inner = shared if wiring.finish else None
    chains = (wiring.before, wiring.after, wiring.finish)
    copies = [[copy.deepcopy(block.get_submodule(name)) for name in chain] for chain in chains]
    around = Between(copies[0], experts, copies[1], copies[2], inner)
    moved = [
        replace(link, ours=f"experts.{link.ours}")
        if link.ours.startswith("experts.") or (inner is not None and link.ours.startswith("shared."))
        else link
        for link in links
    ]
    for place, chain, modules in zip(("before", "after", "finish"), chains, copies, strict=True):
        for i, (name, module) in enumerate(zip(chain, modules, strict=True)):
            moved += module_links(f"experts.{place}.{i}", name, module)
    return around, moved
