"""Gates named by their parts: `score=cosine+select=topk`, the rest held at `topk-softmax`'s parts.

gatelab.create_router("score=attention+select=balanced-assignment+balance=prices", hidden_size=64, num_experts=8)
gatelab compare --vary score=linear,attention,cosine,lfa --hold select=topk
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from gatelab.routers import balance, select, weight
from gatelab.routers import score as scores
from gatelab.routers.activation import ACTIVATIONS
from gatelab.routers.router import Router

Part = Callable[[int, int, int], Any]  # (hidden_size, num_experts, top_k) -> the part

SCORES: dict[str, Part] = {
    "linear": lambda D, E, k: scores.LinearScore(D, E),
    "attention": lambda D, E, k: scores.AttentionScore(D, E),
    "attention-lfa": lambda D, E, k: scores.AttentionScore(D, E, lfa=True),
    "lfa": lambda D, E, k: scores.FilteredScore(scores.LinearScore(D, E)),
    "cosine": lambda D, E, k: scores.CosineScore(D, E),
    "mlp": lambda D, E, k: scores.MLPScore(D, E),
    "hadamard": lambda D, E, k: scores.HadamardScore(D, E),
}
SELECTS: dict[str, Part] = {
    "topk": lambda D, E, k: select.TopK(k),
    "expert-choice": lambda D, E, k: select.ExpertChoice(k),
    "balanced-assignment": lambda D, E, k: select.BalancedAssignment(k),
    "sinkhorn": lambda D, E, k: select.SinkhornTopK(k),
    "capacity": lambda D, E, k: select.Capacity(select.TopK(k), 1.25),
    "top-p": lambda D, E, k: select.TopP(0.4),
    "random": lambda D, E, k: select.RandomK(k),
    "round-robin": lambda D, E, k: select.RoundRobin(k),
}
WEIGHTS: dict[str, Part] = {
    "renormalize": lambda D, E, k: weight.Renormalize(),
    "softmax": lambda D, E, k: weight.SoftmaxOverChosen(),
    "score": lambda D, E, k: (),
    "uniform": lambda D, E, k: weight.Constant(1 / k),
}
BALANCES: dict[str, Part] = {
    "none": lambda D, E, k: [],
    "switch": lambda D, E, k: [balance.SwitchLoss(0.01)],
    "z": lambda D, E, k: [balance.ZLoss(0.001)],
    "importance": lambda D, E, k: [balance.ImportanceLoss(0.01)],
    "sign-bias": lambda D, E, k: [balance.SignBias(E)],
    "quantile": lambda D, E, k: [balance.QuantilePrices(E, k)],
    "swept": lambda D, E, k: [balance.SweptPrices(E, k)],
    "prices": lambda D, E, k: [balance.Prices(E)],
}
STAGES: dict[str, dict[str, Any]] = {
    "score": SCORES,
    "activation": ACTIVATIONS,
    "select": SELECTS,
    "weight": WEIGHTS,
    "balance": BALANCES,
}
DEFAULTS = {
    "score": "linear",
    "activation": "softmax",
    "select": "topk",
    "weight": "renormalize",
    "balance": "switch",
}
# Parts that do not go with a default bring the one they need, unless that stage is named too.
NEEDS = {
    ("weight", "softmax"): {"activation": "none"},
    ("activation", "none"): {"weight": "softmax"},
    ("balance", "prices"): {"select": "balanced-assignment"},
}


def is_composition(name: str) -> bool:
    """Whether a router name spells out parts."""
    return name.partition("=")[0] in STAGES


def parse(name: str) -> dict[str, str]:
    """Stage -> part, from `stage=part+stage=part`.

    Raises:
        ValueError: no such stage or part, or a stage named twice.
    """
    chosen: dict[str, str] = {}
    for item in name.split("+"):
        stage, _, part = item.partition("=")
        if stage not in STAGES:
            raise ValueError(f"{stage!r} in {name!r} is no stage of a gate; choose from {', '.join(STAGES)}")
        if part not in STAGES[stage]:
            raise ValueError(f"{stage}={part!r} is unknown; choose one of {', '.join(STAGES[stage])}")
        if stage in chosen:
            raise ValueError(f"{stage} stands twice in {name!r}; name each stage once")
        chosen[stage] = part
    return chosen


def compose(name: str) -> Callable[..., Router]:
    """The maker (hidden_size, num_experts, top_k) -> Router of a gate named by its parts.

    Raises:
        ValueError: as `parse`.
    """
    named = parse(name)
    parts = dict(DEFAULTS)
    for choice in named.items():
        parts |= NEEDS.get(choice, {})
    parts |= named

    def make(hidden_size: int, num_experts: int, top_k: int = 2) -> Router:
        built = {s: STAGES[s][p](hidden_size, num_experts, top_k) for s, p in parts.items() if s != "activation"}
        return Router(activation=parts["activation"], **built)

    make.__doc__ = "A gate named by its parts: " + ", ".join(f"{stage} {part}" for stage, part in parts.items()) + "."
    return make


def factorial(vary: Sequence[str], hold: Sequence[str] = ()) -> list[str]:
    """Names of every combination: `vary` lists parts by stage (`score=linear,lfa`), `hold` fixes one (`select=topk`).

    Raises:
        ValueError: nothing to vary, an unknown stage or part, or a stage in both.
    """
    levels: list[list[str]] = []
    for item in (*vary, *hold):
        stage, _, listed = item.partition("=")
        levels.append([f"{stage}={part.strip()}" for part in listed.split(",")])
    if not vary:
        raise ValueError("--hold needs a --vary: name a stage and at least two parts, as in score=linear,cosine")
    for item, level in zip(hold, levels[len(vary) :], strict=True):
        if len(level) > 1:
            raise ValueError(f"--hold {item} has {len(level)} parts; hold one, or --vary the stage")
    names = ["+".join(combination) for combination in itertools.product(*levels)]
    for name in names:
        parse(name)
    return names
