"""Results as `gatelab compare` writes them (docs/results.md), made up: the load follows a simple random walk."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

# bits per byte of seed 0, and how much the worst expert is over the mean
SCORES = {
    "topk-softmax": (2.412, 0.6),
    "attention": (2.398, 1.9),
    "attention-lfa": (2.391, 2.4),
    "expert-choice": (2.455, 0.0),
    "balanced-assignment": (2.431, 0.0),
    "dense": (2.470, 0.0),
    "random": (2.520, 0.2),
    "round-robin": (2.502, 0.0),
}
BASELINES = ("dense", "random", "round-robin")


def make_results(
    routers: Sequence[str] = tuple(SCORES),
    *,
    seeds: int = 2,
    steps: int = 40,
    num_layers: int = 2,
    num_experts: int = 8,
    scores: dict[tuple[str, int], float] | None = None,
) -> dict[str, Any]:
    """A finished run; `scores` sets the bits per byte of chosen cells."""
    cells = [
        _cell(name, seed, steps, num_layers, num_experts, (scores or {}).get((name, seed)))
        for name in routers
        for seed in range(seeds)
    ]
    return {
        "kind": "results",
        "schema": 1,
        "gatelab": "0.1.0",
        "machine": {
            "platform": "Linux-6.1-x86_64",
            "processor": "x86_64",
            "cores": 2,
            "python": "3.11.7",
            "torch": "2.13.0",
            "device": "cpu",
        },
        "config": {
            "text": {
                "source": "Python standard library",
                "train_bytes": 9_000_000,
                "validation_bytes": 1_000_000,
                "sha256": "0" * 64,
            },
            "steps": steps,
            "batch_size": 8,
            "sequence_length": 128,
            "hidden_size": 64,
            "num_layers": num_layers,
            "num_heads": 4,
            "num_experts": num_experts,
            "top_k": 2,
            "attention": "plain",
            "learning_rate": 1e-3,
            "first_seed": 0,
            "seeds": seeds,
        },
        "routers": {name: _router(name, num_experts) for name in routers},
        "cells": cells,
    }


def _router(name: str, num_experts: int) -> dict[str, Any]:
    learned = name not in BASELINES
    k = {"dense": num_experts, "expert-choice": None}.get(name, 2)
    promise = {
        "causal": name != "random",
        "token_wise": name not in ("attention-lfa", "round-robin", "random"),
        "max_load": 1.0 if name in ("dense", "round-robin") else None,
        "dropless": True,
        "experts_per_token": k,
        "stateful": name == "balanced-assignment",
    }
    training = dict(promise)
    fallback = None
    if name in ("expert-choice", "balanced-assignment"):
        training |= {"causal": False, "token_wise": False, "max_load": 1.0}
    if name == "expert-choice":
        promise = dict(training)
        fallback = "each token goes to the 2 experts that score it highest"
    gate = 1024.0 * (6 if name.startswith("attention") else 1) * learned
    return {
        "source": "Yuan 2.0-M32, arXiv 2405.17976, §2.2" if learned else "a baseline of this library",
        "equation": "z = W x;  p = softmax(z);  S = top-k of p",
        "baseline": not learned,
        "experts_per_token": k,
        "mean_experts_per_token": float(k or 2),
        "intermediate_size": 64,
        "parameters": 900_000,
        "router_parameters": int(gate),
        "flops_per_token": {
            "router": 2 * gate,
            "experts": 98_304.0 - 2 * gate,
            "attention": 65_536.0,
            "other": 32_768.0,
            "total": 196_608.0,
        },
        **{field: {"total": 210_000.0} for field in ("executed_flops_per_token", "elementwise_per_token")},
        "sorted_per_token": {"total": 16.0},
        "training": training,
        "evaluation": promise,
        "fallback": fallback,
    }


def _cell(name: str, seed: int, steps: int, num_layers: int, num_experts: int, score: float | None) -> dict[str, Any]:
    draw = random.Random(f"{name!r} {seed}")
    base, violation = SCORES.get(name, (2.4, 0.5))
    score = base + 0.01 * seed + draw.uniform(-0.003, 0.003) if score is None else score
    load_steps = list(range(0, steps, max(1, steps // 20)))
    return {
        "router": name,
        "seed": seed,
        "val_bits_per_byte": score,
        "as_trained_bits_per_byte": score - 0.6 if name == "expert-choice" else None,
        "train_seconds": 12.5,
        "tokens_per_second": 30_000.0 + 1000 * draw.random(),
        "skipped_steps": 0,
        "gate_seconds_per_step": 0.0
        if name == "dense"
        else 1e-3 * (3 if "attention" in name else 1) * (1 + draw.random()),
        "history": {
            "step": list(range(steps)),
            "train_bits_per_byte": [score + 5.6 / (1 + 0.2 * t) + draw.uniform(-0.05, 0.05) for t in range(steps)],
            "aux_loss": [0.01] * steps if name == "topk-softmax" else [None] * steps,
            "max_violation": [violation * (1 + draw.random()) for _ in range(steps)],
        },
        "layers": [_layer(i, violation * (1 + i / 2), num_experts, load_steps, draw) for i in range(num_layers)],
    }


def _layer(
    index: int, violation: float, num_experts: int, load_steps: list[int], draw: random.Random
) -> dict[str, Any]:
    load, skew = [], [0.0] * num_experts
    for _ in load_steps:
        skew = [s + draw.gauss(0, 0.3) * violation for s in skew]
        weights = [2**s for s in skew]
        load.append([round(2048 * w / sum(weights)) for w in weights])
    return {
        "name": f"layers.{index}",
        "load_steps": load_steps,
        "load": load,
        "max_violation": violation,
        "max_violation_global": 0.8 * violation,
        "coefficient_of_variation": 0.4 * violation,
        "load_entropy": 1 - 0.05 * violation,
        "experts_per_token": 2.0,
        "dead_experts": 1.0 if violation > 2.5 else 0.0,
        "drop_rate": 0.0,
    }
