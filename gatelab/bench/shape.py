"""What our JSON files hold (docs/results.md), so that a damaged one is refused where it is read, not where it is used.

A shape is a type or several, `[shape]` for a list, a dict of shapes (a name that ends in ? may be missing), or
`{...: shape}` for a dict whose names are anybody's.
"""

from __future__ import annotations

from typing import Any

FIGURE = (int, float, type(None))
NUMBER = (int, float)
LAYER_FIGURES = ("max_violation", "max_violation_global", "coefficient_of_variation", "load_entropy", "drop_rate")
LAYER = {
    "name": str,
    "load_steps": [int],
    "load": [[FIGURE]],
    "dead_experts": FIGURE,
    "experts_per_token?": FIGURE,
    **dict.fromkeys(LAYER_FIGURES, FIGURE),
}
HISTORY = {"step": [int], "train_bits_per_byte": [FIGURE], "aux_loss": [FIGURE], "max_violation": [FIGURE]}
SCORES = ("val_bits_per_byte", "as_trained_bits_per_byte")
TIMES = ("train_seconds", "tokens_per_second", "gate_seconds_per_step")
CELL = {
    "router": str,
    "seed": int,
    "skipped_steps?": int,
    "history": HISTORY,
    "layers": [LAYER],
    **dict.fromkeys((*SCORES, *TIMES), FIGURE),
}
PROMISE = {
    **dict.fromkeys(("causal", "token_wise", "dropless", "stateful"), bool),
    **dict.fromkeys(("max_load", "experts_per_token"), FIGURE),
}
ROUTER = {
    "source": str,
    "equation": str,
    "baseline": bool,
    "fallback": (str, type(None)),
    "experts_per_token": FIGURE,
    "mean_experts_per_token": NUMBER,
    "intermediate_size": int,
    "parameters": int,
    "router_parameters": int,
    "flops_per_token": {"router": NUMBER, "total": NUMBER},
    **{f"{work}_per_token?": {"total": NUMBER} for work in ("executed_flops", "elementwise", "sorted")},
    "training": PROMISE,
    "evaluation": PROMISE,
}
TEXT = {"source": str, "train_bytes": int, "validation_bytes": int, "sha256": str}
SIZES = ("steps", "batch_size", "sequence_length", "hidden_size", "num_layers", "num_experts", "top_k")
CONFIG = {"text": TEXT, "attention": str, "first_seed": int, "seeds": int, **dict.fromkeys(SIZES, int)}
MACHINE = {
    **dict.fromkeys(("platform", "processor", "python", "torch", "device"), str),
    "cores": (int, type(None)),
}
RESULTS = {"gatelab": str, "machine": MACHINE, "config": CONFIG, "routers": {...: ROUTER}, "cells": [CELL]}


def misfit(value: Any, shape: Any, name: str) -> str | None:
    """The first place where `value`, called `name`, does not have this shape, or None."""
    if isinstance(shape, list):
        found = enumerate(value) if isinstance(value, list) else None
        parts = None if found is None else [(entry, shape[0], f"{name}[{i}]") for i, entry in found]
    elif isinstance(shape, dict):
        parts = _entries(value, shape, name) if isinstance(value, dict) else None
    else:
        return None if _is_a(value, shape) else f"{name} is {_shown(value)}"
    if parts is None:
        return f"{name} is {_shown(value)}"
    return next((found for part in parts if (found := misfit(*part))), None)


def cell_misfit(cell: Any, name: str = "cell") -> str | None:
    """As `misfit` for a cell, whose lists of points must be equally long too."""
    if found := misfit(cell, CELL, name):
        return found
    points = [("history", list(cell["history"].values()))]
    points += [(layer["name"], [layer["load_steps"], layer["load"]]) for layer in cell["layers"]]
    points += [(layer["name"], layer["load"]) for layer in cell["layers"]]
    return next((f"{name}: the lists of {where} differ in length" for where, lists in points if _ragged(lists)), None)


def results_misfit(results: Any) -> str | None:
    """As `misfit` for a results.json."""
    found = misfit(results, RESULTS, "results")
    return found or next(
        (said for i, cell in enumerate(results["cells"]) if (said := cell_misfit(cell, f"cells[{i}]"))), None
    )


def _entries(value: dict[Any, Any], shape: dict[Any, Any], name: str) -> list[tuple[Any, Any, str]]:
    if ... in shape:
        return [(entry, shape[...], f"{name}.{key}") for key, entry in value.items()]
    known = [(key.removesuffix("?"), key.endswith("?"), inner) for key, inner in shape.items()]
    return [(value.get(key), inner, f"{name}.{key}") for key, optional, inner in known if key in value or not optional]


def _is_a(value: Any, kinds: Any) -> bool:
    """bool is an int to Python, not to a reader; an integer beyond 64 bits is nobody's figure."""
    if isinstance(value, bool):
        return kinds is bool
    return isinstance(value, kinds) and (not isinstance(value, int) or abs(value) < 2**63)


def _ragged(lists: list[list[Any]]) -> bool:
    return len({len(found) for found in lists}) > 1


def _shown(value: Any) -> str:
    text = "missing or null" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
