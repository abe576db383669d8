"""One layer at a time: facts, and a row for each of its experts."""

from __future__ import annotations

from typing import Any

from gatelab.bench.report.tables import Cell, Table, figure
from gatelab.bench.report.words import ABSENT, count, number, percent
from gatelab.bench.trace.report.view import LayerView, View

MOST_EXPERTS, MOST_TOKENS, MOST_PAIRS = 32, 5, 3


def details(view: View) -> list[dict[str, Any]]:
    """What the page says of each layer."""
    return [
        {"label": layer.label, "line": _line(layer), "facts": _facts(layer), "experts": _experts(view, layer)}
        for layer in view.layers
    ]


def _line(layer: LayerView) -> str:
    dead = f", {layer['dead_experts']} dead" if layer["dead_experts"] else ""
    return f"{count(layer['num_experts'], 'expert')}{dead}, MaxVio {number(layer['max_violation_global'], 2)}"


def _facts(layer: LayerView) -> list[tuple[str, str]]:
    pairs = [
        f"{pair['expert']} with {pair['with']}: {percent(pair['rate'])}, {number(pair['lift'], 1)} × chance"
        for pair in layer["pairs"][:MOST_PAIRS]
    ]
    shown = f", the {MOST_EXPERTS} busiest below" if layer["num_experts"] > MOST_EXPERTS else ""
    zero = layer["zero_computation_experts"]
    found = {
        "In the model": f"{layer['name']}, {layer['block']}",
        "Gate": layer["gate"],
        "Experts": f"{layer['num_experts']:,}{f' and {zero} that compute nothing' if zero else ''}{shown}",
        "Closest pairs": "; ".join(pairs),
    }
    return [(term, text) for term, text in found.items() if text]


def _experts(view: View, layer: LayerView) -> Table:
    loads = layer["tokens_per_expert"]
    mean = sum(loads) / len(loads) or 1.0
    busiest = sorted(range(len(loads)), key=lambda e: -loads[e])[:MOST_EXPERTS]
    several = len(view.texts) > 1
    columns = ("Expert", "Load × mean", "Tokens", "Works with", *(["Leans to"] if several else []))
    rows = []
    for e in sorted(busiest):
        expert = layer["experts"][e]
        tokens = [f"{entry['token']} {_percent(entry)}" for entry in expert["tokens"][:MOST_TOKENS]]
        partners = [f"{entry['expert']} {_percent(entry, 'rate')}" for entry in expert["partners"][:2]]
        row = [
            Cell(f"expert {e}", sort=e),
            figure(loads[e] / mean, 2),
            Cell(" · ".join(tokens) or ABSENT),
            Cell(" · ".join(partners) or ABSENT),
        ]
        rows.append(tuple([*row, _leaning(view, layer, e)] if several else row))
    return Table(columns, rows)


def _percent(entry: dict[str, Any], name: str = "share") -> str:
    """Whole, since there are many in little room; kept on one line."""
    return f"{100 * entry[name]:.0f}\N{NO-BREAK SPACE}%"


def _leaning(view: View, layer: LayerView, expert: int) -> Cell:
    """The text whose tokens use an expert the most, against all tokens."""
    shares = [row[expert] for row in layer["domain_specialization"]]
    overall = layer["tokens_per_expert"][expert] / layer["tokens"]
    if not overall:
        return Cell(ABSENT, sort=float("nan"))
    best = max(range(len(shares)), key=shares.__getitem__)
    factor = shares[best] / overall
    return Cell(view.texts[best]["name"], f"{number(factor, 2)} × its share", factor)
