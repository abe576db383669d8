"""Tables as values: what stands in them is decided here, how they look in page.py and markdown.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gatelab.bench.report.run import LEAKY, SCORE, Run, as_float
from gatelab.bench.report.summary import difference, router_share, worst_layer
from gatelab.bench.report.words import ABSENT, VERDICTS, interval, number, percent, quantity

LAYER_METRICS = ("max_violation", "max_violation_global", "coefficient_of_variation", "load_entropy", "drop_rate")
LAYER_COLUMNS = ("MaxVio", "MaxVio, summed", "CV", "Entropy", "Dropped", "Dead experts")


@dataclass(frozen=True)
class Cell:
    """Text, a smaller note under it, and what the column is sorted by: a number, or the text itself where None."""

    text: str
    note: str = ""
    sort: float | None = None


@dataclass(frozen=True)
class Table:
    """`columns[0]` heads the names of the rows."""

    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]


def figure(value: float, digits: int = 3, note: str = "") -> Cell:
    return Cell(number(value, digits), note, value)


def quality(run: Run) -> Table:
    """Validation bits per byte, lowest first, with the paired differences."""
    known = [other for other in dict.fromkeys((run.reference, "random")) if other in run.routers]
    columns = ("Gate", "Bits per byte", *(f"minus {other}" for other in known))
    rows = []
    for name in sorted(run.routers, key=lambda name: _last(run.mean(name, SCORE))):
        rows.append(
            (
                Cell(name, "baseline" if run.routers[name]["baseline"] else ""),
                figure(run.mean(name, SCORE), note=_remark(run, name)),
                *(_difference(run, name, other) for other in known),
            )
        )
    return Table(columns, rows)


def _last(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _remark(run: Run, name: str) -> str:
    """Seeds that are missing or failed, and the figure that must not be ranked."""
    known, leaky = len(run.values(name, SCORE)), run.mean(name, LEAKY)
    found = [f"{known} of {len(run.seeds)} seeds"] if known < len(run.seeds) else []
    if failed := sum(map(len, run.failures(name).values())):
        found.append(f"{failed} failed")
    if name in run.unscored:
        found = ["not scored: no causal form"]
    return ", ".join(found + ([f"leaky: {number(leaky)}"] if math.isfinite(leaky) else []))


def _difference(run: Run, name: str, other: str) -> Cell:
    d = difference(run, name, other) if name != other else None
    return Cell(interval(d), VERDICTS[d.verdict], d.mean) if d else Cell(ABSENT)


def balance(run: Run) -> Table:
    """Load figures of each gate's worst layer."""
    rows = []
    for name in run.routers:
        entropies = run.layer_means(name, "load_entropy").values()
        worst = {metric: worst_layer(run, name, metric) for metric in LAYER_METRICS}
        worst["load_entropy"] = min((v for v in entropies if math.isfinite(v)), default=math.nan)
        dead = run.layer_means(name, "dead_experts")
        experts = len(dead) * run.config["num_experts"]
        total = sum(dead.values()) if dead else math.nan
        rows.append((Cell(name), *_load_cells(worst), _dead(total, experts)))
    return Table(("Gate", *LAYER_COLUMNS), rows)


def _load_cells(figures: dict[str, float]) -> list[Cell]:
    *plain, entropy, dropped = (figures[metric] for metric in LAYER_METRICS)
    return [*(figure(value, 2) for value in plain), figure(entropy), Cell(percent(dropped), sort=dropped)]


def _dead(value: float, experts: int) -> Cell:
    """A count; with a decimal where it is a mean of seeds that differ."""
    if not math.isfinite(value):
        return Cell(ABSENT, sort=value)
    return Cell(f"{number(value, 0 if value == round(value) else 1)} of {experts}", sort=value)


def layers(run: Run, router: str) -> Table:
    """Load figures of every layer of one gate."""
    by_metric = {metric: run.layer_means(router, metric) for metric in (*LAYER_METRICS, "dead_experts")}
    rows = []
    for layer, dead in by_metric["dead_experts"].items():
        figures = {metric: by_metric[metric][layer] for metric in LAYER_METRICS}
        rows.append((Cell(layer), *_load_cells(figures), _dead(dead, run.config["num_experts"])))
    return Table(("Layer", *LAYER_COLUMNS), rows)


def cost(run: Run) -> Table:
    """What a gate costs: FLOPs, time, parameters."""
    rows = []
    for name, router in run.routers.items():
        seconds, flops = run.mean(name, "gate_seconds_per_step"), router["flops_per_token"]
        speed = run.mean(name, "tokens_per_second")
        rows.append(
            (
                Cell(name),
                Cell(quantity(seconds, "s"), sort=seconds),
                Cell(number(speed, 0), sort=speed),
                Cell(percent(router_share(run, name)), sort=router_share(run, name)),
                Cell(quantity(flops["total"]), sort=flops["total"]),
                Cell(quantity(router["router_parameters"]), sort=router["router_parameters"]),
                Cell(f"{router['intermediate_size']:,}", sort=router["intermediate_size"]),
            )
        )
    columns = ("Gate", "Gate time", "Tokens/s", "Gate FLOPs", "FLOPs per token", "Gate params", "Expert width")
    return Table(columns, rows)


def guarantees(run: Run) -> Table:
    """What each gate promises; `training → evaluation` where the two differ."""
    rows = []
    for name, router in run.routers.items():
        cells = []
        for field in ("causal", "token_wise", "max_load", "dropless", "experts_per_token", "stateful"):
            modes = [_promise(field, router[mode][field]) for mode in ("training", "evaluation")]
            cells.append(Cell(" → ".join(dict.fromkeys(modes))))
        rows.append((Cell(name), *cells))
    return Table(("Gate", "Causal", "Token-wise", "Max load", "No drops", "Experts per token", "Stateful"), rows)


def _promise(field: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "no bound" if field == "max_load" else "varies"
    return f"{value:g} × mean" if field == "max_load" else f"{value:g}"


def seeds(run: Run, router: str) -> Table:
    """Every finished cell of one gate."""
    rows = []
    for cell in run.cells(router):
        score, leaky, seconds, speed, gate = (
            as_float(cell[field])
            for field in (
                SCORE,
                LEAKY,
                "train_seconds",
                "tokens_per_second",
                "gate_seconds_per_step",
            )
        )
        row = [Cell(str(cell["seed"]), sort=cell["seed"]), figure(score, 4), figure(leaky, 4)]
        row += [figure(seconds, 1), figure(speed, 0), Cell(quantity(gate, "s"), sort=gate)]
        rows.append(tuple(row))
    return Table(("Seed", "Bits per byte", "As trained (leaky)", "Seconds", "Tokens/s", "Gate time"), rows)
