"""What results.json says about each router of a comparison: its promises, its size and its FLOPs."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from gatelab.bench.config import BASELINES, CompareConfig
from gatelab.bench.evaluate import causal_fallback, fallback_k, leaky_gates
from gatelab.bench.flops import Flops, attention_flops, moe_flops
from gatelab.bench.matching import Match, create_gate
from gatelab.bench.model import ByteTransformer
from gatelab.bench.seeding import seeded
from gatelab.bench.work import Work, count_work
from gatelab.bench.workloads import BYTES
from gatelab.routers.registry import find_recipe
from gatelab.routers.router import Router
from gatelab.routers.routing import Routing
from gatelab.routers.tape import record

PARTS = ("router", "experts", "attention", "other")


def describe(config: CompareConfig, name: str, matched: Match) -> dict[str, Any]:
    """The entry of a router in results.json."""
    recipe, gate = find_recipe(name), create_gate(config, name)
    training, evaluation = gate.train().guarantees, gate.eval().guarantees
    model = ByteTransformer(config, name, matched.intermediate_size, config.first_seed)
    return {
        "source": recipe.source,
        "equation": recipe.equation,
        "baseline": name in BASELINES,
        "experts_per_token": training.experts_per_token,
        "mean_experts_per_token": matched.mean_experts,
        "intermediate_size": matched.intermediate_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "router_parameters": config.num_layers * gate.num_parameters,
        **_costs(model, config),
        "training": dataclasses.asdict(training),
        "evaluation": dataclasses.asdict(evaluation),
        "fallback": _fallback(gate, config),
    }


def _fallback(gate: Router, config: CompareConfig) -> str | None:
    if not leaky_gates(gate):
        return None
    with causal_fallback(gate, config.top_k):
        if leaky_gates(gate):
            return "not at all: it looks ahead in more than its choice of experts"
    k = fallback_k(gate, config.top_k)
    return f"each token to the {k} experts that score it highest" if k > 1 else "each token to its best-scoring expert"


def _costs(model: ByteTransformer, config: CompareConfig) -> dict[str, Any]:
    """Forward work per token of the untrained model, by part."""
    B, S = config.batch_size, config.sequence_length
    with seeded("costs"):
        ids = torch.randint(BYTES, (B, S))
        with record(model) as tape:
            work, _ = count_work(lambda: model(ids), model, _part_of)
    flops = model_flops(model, [routing for _, routing in tape.entries], B, S)
    counted = {part: work.get(part, Work()) for part in PARTS}
    return {
        "flops_per_token": _with_total({part: flops[part].useful / (B * S) for part in PARTS}),
        "executed_flops_per_token": _with_total({part: flops[part].executed / (B * S) for part in PARTS}),
        "elementwise_per_token": _with_total({part: counted[part].elementwise / (B * S) for part in PARTS}),
        "sorted_per_token": _with_total({part: counted[part].sorted / (B * S) for part in PARTS}),
    }


def model_flops(
    model: ByteTransformer, routings: Sequence[Routing], batch_size: int, sequence_length: int
) -> dict[str, Flops]:
    """Closed-form FLOPs of a forward by part, given what its gates did."""
    total: defaultdict[str, Flops] = defaultdict(lambda: Flops(0, 0))
    for block, routing in zip(model.layers, routings, strict=True):
        parts = moe_flops(block.moe, routing)
        parts["attention"] = attention_flops(block.attention, batch_size, sequence_length)
        for part, flops in parts.items():
            total[part] += flops
    head = 2 * model.embedding.weight.numel() * batch_size * sequence_length
    total["other"] += Flops(head, head)
    return total


def _part_of(module: str) -> str:
    return next((part for part in PARTS if part in module.split(".")), "other")


def _with_total(parts: dict[str, float]) -> dict[str, float]:
    return {**parts, "total": sum(parts.values())}
