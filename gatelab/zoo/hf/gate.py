"""How a block routes, told from what its experts are given on random batches.

Weights say how logits become weights, whichever experts were chosen; the choice says what was compared. Both are
searched among our own parts, so that what explains the block is already the recipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gatelab.routers.activation import resolve_activation
from gatelab.routers.balance import SignBias
from gatelab.routers.context import Context
from gatelab.routers.router import Router
from gatelab.routers.score import LinearScore
from gatelab.routers.select import GroupLimitedTopK, HashTable, SparseMixer, TopK
from gatelab.routers.weight import Renormalize, Scale, SoftmaxOverChosen
from gatelab.zoo.hf.capture import Choices, dense, marks, others
from gatelab.zoo.hf.errors import UnsupportedBlock
from gatelab.zoo.hf.links import Link, same
from gatelab.zoo.hf.parts import ArgMax, FixedCapacity, RenormalizeAtLeast, ScaledScore, UnitNorm, ZeroedGroupsTopK

ACTIVATIONS = ("softmax", "sigmoid", "sqrt-softplus", "none")
# What keeps a sum of scores away from 0, in released code.
EPSILONS = (1e-20, 1e-15, 1e-12, 1e-9, 1e-8, 1e-6, 1e-5)
CLOSE = 1e-5


@dataclass(frozen=True)
class Evidence:
    """All there is to explain a gate by.

    Attributes:
        batches: the first is a plain one; others show the small print.
        extreme: hidden states so large that scores saturate and underflow, for the choice alone.
        ruled: experts chosen for their bias, down to vanishing scores, for the weights alone.
        tensors: of the router and of the block itself, by name.
        numbers: their attributes that are numbers, by name.
    """

    batches: Sequence[Choices]
    extreme: Choices
    ruled: Sequence[Choices]
    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, float]

    @property
    def k(self) -> int:
        return self.batches[0].ids.shape[1]

    def named(self, word: str) -> list[float]:
        """Numbers whose name has the word."""
        return [number for name, number in self.numbers.items() if word in name]

    def matrices(self) -> list[str]:
        """What may be W: (E, D) tensors."""
        D = self.batches[0].x.shape[-1]
        return [n for n, t in self.floating() if t.dim() == 2 and t.shape[1] == D and t.shape[0] > 1]

    def vectors(self, num_experts: int) -> list[str]:
        """What may be a bias: tensors with E entries."""
        return [n for n, t in self.floating() if t.numel() == num_experts and t.squeeze().dim() == 1]

    def tables(self) -> list[str]:
        """What may be a hash table: (V, K) ids."""
        return [n for n, t in self.tensors.items() if not t.is_floating_point() and t.dim() == 2]

    def scaled(self, factor: float) -> Evidence:
        """The same with all weights times a factor."""
        batches, ruled = (
            [replace(b, weights=b.weights * factor) for b in group] for group in (self.batches, self.ruled)
        )
        return replace(self, batches=batches, ruled=ruled)

    def floating(self) -> Iterator[tuple[str, Tensor]]:
        yield from ((name, tensor) for name, tensor in self.tensors.items() if tensor.is_floating_point())


def groups_of(numbers: Mapping[str, float]) -> tuple[int, int] | None:
    """(groups, groups kept) by a block's numbers, if that limits anything."""
    found = {"topk" in name.replace("_", ""): int(n) for name, n in numbers.items() if "group" in name}
    return (found[False], found[True]) if len(found) == 2 and 1 < found[False] != found[True] else None


@dataclass(frozen=True)
class Gate:
    """A recipe with the probe's numbers in it, the links of its tensors, and the share of tokens it gets exactly."""

    router: Router
    links: list[Link]
    agreement: float


def find_gate(evidence: Evidence) -> Gate:
    """The recipe that explains the evidence.

    Raises:
        UnsupportedBlock: none does.
    """
    weighed = False
    for score, links in scores(evidence):
        explanations = list(_explanations(score, links, evidence))
        weighed = weighed or bool(explanations)
        gates = [_choice(score, links, *explanation, evidence) for explanation in explanations]
        gates.append(_sparse_mixer(score, links, evidence))
        best = max((gate for gate in gates if gate is not None), key=_preference, default=None)
        if best is not None:
            return best
    known = "its weights are understood, but not which experts it chooses"
    raise UnsupportedBlock(known if weighed else "how it turns hidden states into weights is not understood")


def scores(evidence: Evidence) -> Iterator[tuple[LinearScore, list[Link]]]:
    """Every linear score the tensors allow, the plain ones first, and its links."""
    plain: list[tuple[str, str | None]] = []
    for matrix in evidence.matrices():
        plain += [(matrix, None), *((matrix, bias) for bias in evidence.vectors(evidence.tensors[matrix].shape[0]))]
    constants = sorted({number for number in evidence.numbers.values() if number > 0 and number != 1})
    bent = [{"multiplier": m} for m in constants] + [{"softcap": c} for c in constants]
    for options in [{}, *bent]:
        for matrix, bias in plain:
            E, D = evidence.tensors[matrix].shape
            score = ScaledScore(D, E, bias is not None, **options) if options else LinearScore(D, E, bias is not None)
            score.weight = nn.Parameter(evidence.tensors[matrix])
            links = [same("router.score.weight", matrix)]
            if bias is not None:
                score.bias = nn.Parameter(evidence.tensors[bias].reshape(E))
                links.append(same("router.score.bias", bias, (E,)))
            yield score, links


def _explanations(score: LinearScore, links: list[Link], evidence: Evidence) -> Iterator[tuple[str, list[nn.Module]]]:
    """Activations and weight parts that give the weights, at the experts that were chosen."""
    batches = [*evidence.batches, *evidence.ruled]
    if any(int(b.ids.max()) >= score.num_experts for b in batches):
        return
    with torch.no_grad():
        logits = [_logits(score, links, batch) for batch in batches]
    for activation in ACTIVATIONS:
        function = resolve_activation(activation)
        gates = [function(z).gather(1, b.ids.clamp(min=0)) for z, b in zip(logits, batches, strict=True)]
        for variants in _normalizers(activation, evidence):
            parts = (_scaled(normalizer, gates, batches, evidence.numbers) for normalizer in variants)
            if (found := next((part for part in parts if part is not None), None)) is not None:
                yield activation, found


def _logits(score: LinearScore, links: list[Link], batch: Choices) -> Tensor:
    """(T, E) with the score's tensors as they were in that batch."""
    changed = {
        link.ours.removeprefix("router.score."): link.pull(batch.tensors)
        for link in links
        if batch.tensors.keys() >= set(link.theirs)
    }
    return functional_call(score, changed, (Context(batch.x, score.num_experts, training=False),))


def _normalizers(activation: str, evidence: Evidence) -> Iterator[list[nn.Module | None]]:
    """What may become of the gates; of the variants of one, the first that fits is enough."""
    numbers = sorted({number for number in evidence.numbers.values() if number > 0})
    yield [None]
    yield [
        Renormalize(),
        *(Renormalize(eps) for eps in (*EPSILONS, *numbers)),
        *(RenormalizeAtLeast(minimum) for minimum in (*EPSILONS, *numbers)),
    ]
    yield [UnitNorm(p) for p in (2.0, *numbers)]
    if activation == "none":
        yield [SoftmaxOverChosen()]


def _scaled(
    normalizer: nn.Module | None, gates: list[Tensor], batches: Sequence[Choices], numbers: Mapping[str, float]
) -> list[nn.Module] | None:
    """The weight parts, if the weights are a constant times what they give."""
    base = [g if normalizer is None else normalizer(g, torch.ones_like(g, dtype=torch.bool), None) for g in gates]
    chosen = [batch.rows[:, None] & (batch.ids >= 0) for batch in batches]
    constant = float((batches[0].weights / base[0])[chosen[0]].median())
    for predicted, batch, live in zip(base, batches, chosen, strict=True):
        error, size = (constant * predicted - batch.weights)[live].abs(), batch.weights[live].abs()
        if live.any() and not bool((error <= CLOSE * size.max()).all()):
            return None
    return [*([] if normalizer is None else [normalizer]), *scaling(constant, numbers)]


def scaling(constant: float, numbers: Mapping[str, float]) -> list[nn.Module]:
    """`Scale` by a measured constant, or by the attribute it is; nothing where it is 1."""
    if abs(constant - 1) <= CLOSE:
        return []
    near = [number for number in numbers.values() if abs(number - constant) <= CLOSE * abs(constant)]
    return [Scale(min(near, key=lambda number: abs(number - constant), default=constant))]


def _choice(
    score: LinearScore, links: list[Link], activation: str, weight: list[nn.Module], evidence: Evidence
) -> Gate | None:
    """The selection that explains the choices best."""
    E = score.num_experts
    gates: list[Gate] = []
    for select_on in ("scores", "logits"):
        for bias in (None, *evidence.vectors(E)):
            for select, select_links in _selections(E, evidence):
                if isinstance(select, ZeroedGroupsTopK) and any(gate.agreement for gate in gates):
                    continue
                balance, bias_links = [], []
                if bias is not None:
                    balance, bias_links = [SignBias(E)], [same("router.balance.0.bias", bias, (E,))]
                    balance[0].bias.copy_(evidence.tensors[bias].detach().flatten())
                try:
                    router = Router(
                        score=score,
                        activation=activation,
                        select=select,
                        select_on=select_on,
                        weight=weight,
                        balance=balance,
                    )
                except ValueError:  # parts that do not go together explain nothing
                    continue
                alike = agreement(router, [*evidence.batches, evidence.extreme])
                gates.append(Gate(router, [*links, *select_links, *bias_links], alike))
    best = max(gates, key=_preference, default=None)
    return best if best is not None and best.agreement else None


def _preference(gate: Gate) -> tuple[float, bool]:
    return gate.agreement, gate.router.select_on == "scores"


def _selections(E: int, evidence: Evidence) -> Iterator[tuple[nn.Module, list[Link]]]:
    k = evidence.k
    # First, so that they are taken where nothing tells them from plain top-k: groups that hardly ever close.
    groups = groups_of(evidence.numbers)
    if groups is not None:
        for kind in (GroupLimitedTopK, ZeroedGroupsTopK):
            yield kind(k, E, *groups, "two-best"), []
            yield kind(k, E, *groups, "max"), []
    yield TopK(k), []
    for capacity in evidence.named("capacity"):
        if any(bool((b.ids < 0).any()) for b in evidence.batches):
            yield FixedCapacity(TopK(k) if k > 1 else ArgMax(), int(capacity)), []
    if evidence.batches[0].token_ids is not None:
        for name in evidence.tables():
            yield HashTable(evidence.tensors[name], E), [same("router.select.table", name)]


def _sparse_mixer(score: LinearScore, links: list[Link], evidence: Evidence) -> Gate | None:
    if type(score) is not LinearScore:
        return None
    for eps in evidence.named("jitter"):
        select = SparseMixer(evidence.k, eps)
        gate = Gate(Router(score=score, select=select, select_on="logits"), links, 1.0)
        if all(_weighs(gate.router, batch) for batch in evidence.batches):
            return gate
    return None


def _weighs(router: Router, batch: Choices) -> bool:
    with torch.no_grad():
        ours = router.eval()(batch.x, token_ids=batch.token_ids).to_dense()
    wanted = dense(batch.ids, batch.weights, router.num_experts)
    return bool(((ours - wanted).abs() <= CLOSE * wanted.max()).all())


def agreement(router: Router, batches: Iterable[Choices]) -> float:
    """The share of tokens with exactly the observed experts; 0 if more than a rare one differs in one with a weight."""
    alike = tokens = 0
    for batch in batches:
        with torch.no_grad():
            routing = router.eval()(batch.x, token_ids=batch.token_ids)
        E, T = router.num_experts, len(batch.ids)
        differ = others(batch.ids, batch.weights, routing) & batch.rows
        # Two nearly equal scores may fall either way.
        if int(differ.sum()) > T // 40:
            return 0.0
        alike += int((marks(batch.ids, E) == marks(routing.topk()[1], E)).all(1).sum())
        tokens += T
    return alike / tokens
