"""What our JSON files hold (docs/results.md), so that a damaged one is refused where it is read, not where it is used.

A shape is a type or several, a range for a whole number in it, `[shape]` for a list, a dict of shapes (a name that ends
in ? may be missing), or `{...: shape}` for a dict whose names are anybody's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from gatelab.bench.config import MOST, MOST_OTHERWISE, MOST_SEED

FIGURE = (int, float, type(None))
NUMBER = (int, float)
TEXT_OR_NULL = (str, type(None))
WORDS = {
    FIGURE: "null or a number within ±2^63",
    NUMBER: "a number within ±2^63",
    TEXT_OR_NULL: "text or null",
    str: "text",
    bool: "true or false",
}
_MISSING = object()
COUNT = range(2**63)
SEED = range(-MOST_SEED, MOST_SEED + 1 + MOST["seeds"])
LAYER_FIGURES = ("max_violation", "max_violation_global", "coefficient_of_variation", "load_entropy", "drop_rate")
LAYER = {
    "name": str,
    "load_steps": [COUNT],
    "load": [[FIGURE]],
    "dead_experts": FIGURE,
    "experts_per_token?": FIGURE,
    **dict.fromkeys(LAYER_FIGURES, FIGURE),
}
HISTORY = {"step": [COUNT], "train_bits_per_byte": [FIGURE], "aux_loss": [FIGURE], "max_violation": [FIGURE]}
SCORES = ("val_bits_per_byte", "as_trained_bits_per_byte")
TIMES = ("train_seconds", "tokens_per_second", "gate_seconds_per_step")
CELL = {
    "router": str,
    "seed": SEED,
    "skipped_steps?": COUNT,
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
    "fallback": TEXT_OR_NULL,
    "experts_per_token": FIGURE,
    "mean_experts_per_token": NUMBER,
    **dict.fromkeys(("intermediate_size", "parameters", "router_parameters"), COUNT),
    "flops_per_token": dict.fromkeys(("router", "experts", "attention", "other", "total"), NUMBER),
    **{f"{work}_per_token?": {"total": NUMBER} for work in ("executed_flops", "elementwise", "sorted")},
    "training": PROMISE,
    "evaluation": PROMISE,
}
TEXT = {"source": str, "train_bytes": COUNT, "validation_bytes": COUNT, "sha256": str}
SIZES = ("steps", "batch_size", "sequence_length", "hidden_size", "num_layers", "num_experts", "top_k")
CONFIG = {
    "text": TEXT,
    "attention": str,
    "first_seed": range(-MOST_SEED, MOST_SEED + 1),
    "seeds": range(1, MOST["seeds"] + 1),
    **dict.fromkeys(SIZES, range(1, MOST_OTHERWISE + 1)),
}
MACHINE = {**dict.fromkeys(("platform", "processor", "python", "torch", "device"), str), "cores": FIGURE}
FAILURE = {"router": str, "seed": SEED, "reason": str}
RESULTS = {
    "gatelab": str,
    "machine": MACHINE,
    "config": CONFIG,
    "routers": {...: ROUTER},
    "cells": [CELL],
    "failures?": [FAILURE],
}


def misfit(value: Any, shape: Any, name: str = "") -> str | None:
    """The first place where `value`, called `name`, does not have this shape, or None."""
    if isinstance(shape, list) and isinstance(value, list):
        parts = [(entry, shape[0], f"{name}[{i}]") for i, entry in enumerate(value)]
    elif isinstance(shape, dict) and isinstance(value, dict):
        parts = _entries(value, shape, f"{name}." if name else "")
    elif isinstance(shape, list | dict) or not _is_a(value, shape):
        return f"{name or 'the file'} is {_shown(value)}, not {_words(shape)}"
    else:
        return None
    return next((found for part in parts if (found := misfit(*part))), None)


def cell_misfit(cell: Any, name: str = "cell") -> str | None:
    """As `misfit` for a cell, whose lists of points must be equally long too."""
    if found := misfit(cell, CELL, name):
        return found
    points = [("history", [cell["history"][field] for field in HISTORY])]
    points += [(layer["name"], [layer["load_steps"], layer["load"]]) for layer in cell["layers"]]
    points += [(layer["name"], layer["load"]) for layer in cell["layers"]]
    return next((f"{name}: the lists of {where} differ in length" for where, lists in points if _ragged(lists)), None)


def results_misfit(results: Any) -> str | None:
    """As `misfit` for a results.json, whose cells must be those of its routers and seeds too."""
    return misfit(results, RESULTS) or next(_cell_misfits(results), None)


def _cell_misfits(results: dict[str, Any]) -> Iterator[str]:
    first, count = results["config"]["first_seed"], results["config"]["seeds"]
    seen = set()
    for kind in ("cells", "failures"):
        for i, cell in enumerate(results.get(kind, [])):
            router, seed, name = cell["router"], cell["seed"], f"{kind}[{i}]"
            if router not in results["routers"]:
                yield f"{name}: router {_shown(router)} is not among routers"
            if not first <= seed < first + count:
                yield f"{name}: seed {seed} is not among the {count} from first_seed = {first}"
            if (router, seed) in seen:
                yield f"{name}: router {_shown(router)} with seed {seed} is there twice"
            if kind == "cells" and (damage := cell_misfit(cell, name)):
                yield damage
            seen.add((router, seed))


def _entries(value: dict[Any, Any], shape: dict[Any, Any], place: str) -> list[tuple[Any, Any, str]]:
    if ... in shape:
        return [(entry, shape[...], f"{place}{key}") for key, entry in value.items()]
    known = [(key.removesuffix("?"), key.endswith("?"), inner) for key, inner in shape.items()]
    present = [entry for entry in known if entry[0] in value or not entry[1]]
    return [(value.get(key, _MISSING), inner, f"{place}{key}") for key, _, inner in present]


def _is_a(value: Any, shape: Any) -> bool:
    """bool is an int to Python, not to a reader; a number beyond 64 bits is nobody's figure."""
    if isinstance(value, bool):
        return shape is bool
    if isinstance(shape, range):
        return isinstance(value, int) and value in shape
    return isinstance(value, shape) and not (isinstance(value, NUMBER) and 2**63 <= abs(value) < math.inf)


def _ragged(lists: list[list[Any]]) -> bool:
    return len({len(found) for found in lists}) > 1


def _shown(value: Any) -> str:
    text = "missing" if value is _MISSING else "null" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _words(shape: Any) -> str:
    if isinstance(shape, range):
        return f"a whole number from {shape[0]} to {shape[-1]}"
    return "a list" if isinstance(shape, list) else "an object" if isinstance(shape, dict) else WORDS[shape]
