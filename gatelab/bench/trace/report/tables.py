"""Tables of a trace as values: a row per layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gatelab.bench.report.tables import Cell, Table, figure
from gatelab.bench.report.words import number, percent
from gatelab.bench.trace.report.view import LayerView, View


def share(value: float) -> Cell:
    return Cell(percent(value), sort=value)


def whole(value: int) -> Cell:
    return Cell(f"{value:,}", sort=value)


def _table(view: View, columns: dict[str, Callable[[LayerView], Cell]]) -> Table:
    rows = [
        (Cell(layer.label, sort=index), *(cell(layer) for cell in columns.values()))
        for index, layer in enumerate(view.layers)
    ]
    return Table(("Layer", *columns), rows)


def balance(view: View) -> Table:
    """How the load spreads."""
    return _table(
        view,
        {
            "MaxVio": lambda layer: figure(layer["max_violation"], 2),
            "MaxVio, summed": lambda layer: figure(layer["max_violation_global"], 2),
            "CV": lambda layer: figure(layer["coefficient_of_variation"], 2),
            "Gini": lambda layer: figure(layer["gini"], 2),
            "Entropy": lambda layer: figure(layer["load_entropy"]),
            "Dead experts": lambda layer: Cell(
                f"{layer['dead_experts']} of {layer['num_experts']}", sort=layer["dead_experts"]
            ),
        },
    )


def gate(view: View) -> Table:
    """How sure the gates are."""
    columns: dict[str, Callable[[LayerView], Cell]] = {
        "Entropy, nats": lambda layer: figure(layer["gate_entropy"], 2),
        "of ln E": lambda layer: share(layer["gate_entropy_share"]),
        "Margin": lambda layer: figure(layer["top1_margin"]),
        "Experts per token": _experts_per_token,
        "Dropped": lambda layer: share(layer["drop_rate"]),
    }
    if any(layer["zero_computation_experts"] for layer in view.layers):
        columns["To experts that compute nothing"] = lambda layer: share(layer["zero_computation_share"])
    return _table(view, columns)


def _experts_per_token(layer: LayerView) -> Cell:
    k: dict[str, Any] = layer["experts_per_token"]
    if k["min"] == k["max"]:
        return Cell(f"{k['max']}", sort=k["mean"])
    return Cell(number(k["mean"], 2), f"{k['min']} to {k['max']}", k["mean"])


def specialization(view: View) -> Table:
    """What experts stand for."""
    columns: dict[str, Callable[[LayerView], Cell]] = {
        "Token id": lambda layer: share(layer["vocabulary_specialization"]),
        "First choice": lambda layer: share(layer["vocabulary_specialization_first"]),
        "Token info": lambda layer: _information(layer, "token_information"),
    }
    if len(view.texts) > 1:
        columns["Text info"] = lambda layer: _information(layer, "domain_information")
    columns["Partner"] = lambda layer: Cell(
        percent(layer["co_activation"]),
        f"by chance {percent(layer['co_activation_by_chance'])}",
        layer["co_activation"],
    )
    return _table(view, columns)


def _information(layer: LayerView, name: str) -> Cell:
    return figure(layer[name], note=f"by chance {number(layer[f'{name}_by_chance'])}")


def devices(view: View) -> Table:
    """What the imbalance costs on several devices, and how few experts do most of the work."""
    columns: dict[str, Callable[[LayerView], Cell]] = {
        "Devices": lambda layer: whole(layer["devices"]),
        "Fullest device": lambda layer: figure(layer["straggler_factor"], 2),
        "Fullest, summed": lambda layer: figure(layer["straggler_factor_global"], 2),
    }
    for part, name in (("0.5", "50 %"), ("0.9", "90 %"), ("0.99", "99 %")):
        columns[f"Experts for {name}"] = lambda layer, part=part: whole(layer["experts_covering"][part])
    return _table(view, columns)
