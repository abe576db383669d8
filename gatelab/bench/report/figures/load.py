"""Heat maps of expert load, expert × step: a panel per gate or per layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from gatelab.bench.report.figures.style import Drawing, new_figure, panels, plain_ticks, short, thin
from gatelab.bench.report.run import Run, as_float
from gatelab.bench.report.words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_COLUMNS = 120
SPREAD = 2.0  # colours reach from 2^-2 to 2^2 times the mean load


def load_by_gate(run: Run) -> Drawing | None:
    """Expert × step, one panel per router: the least balanced layer of its first finished seed."""
    chosen = {name: _worst(cells[0]["layers"]) for name in run.routers if (cells := run.cells(name))}
    chosen = {name: layer for name, layer in chosen.items() if layer is not None}
    if not chosen:
        return None
    grid, scale, figure = _grid_and_scale(1.15 * math.ceil(len(chosen) / 2))
    for axes, (name, layer) in zip(panels(grid, len(chosen)), chosen.items(), strict=True):
        _heat_map(axes, layer)
        axes.set_title(short(name, 26), loc="left", fontweight="bold", pad=3)
    draw_scale(scale)
    said = "; ".join(f"{name} {_spread(layer)}" for name, layer in chosen.items())
    return Drawing(
        "load",
        "Load of the experts over training",
        "A row per expert, a column per recorded step, in the gate's least balanced layer (first seed). Grey is the "
        "fair share, yellow too much, dark blue too little.",
        f"Heat maps of expert load over steps. Least and most loaded expert at the end: {said}.",
        figure,
    )


def load_by_layer(run: Run, router: str, name: str) -> Drawing | None:
    """Expert × step, one panel per layer, of the router's first finished seed."""
    cells = run.cells(router)
    layers = [layer for layer in cells[0]["layers"] if layer["load"]] if cells else []
    if not layers:
        return None
    grid, scale, figure = _grid_and_scale(0.2 + len(layers))
    for axes, layer in zip(panels(grid, len(layers), columns=1), layers, strict=True):
        _heat_map(axes, layer)
        axes.set_title(short(layer["name"], 40), loc="left", pad=3)
    draw_scale(scale)
    said = "; ".join(f"{layer['name']} {_spread(layer)}" for layer in layers)
    return Drawing(
        name,
        f"Load in every layer of {router}",
        f"Seed {cells[0]['seed']}. A row per expert, a column per recorded step.",
        f"Heat maps of expert load of {router}. Least and most loaded expert at the end: {said}.",
        figure,
    )


def _grid_and_scale(height: float) -> tuple[Any, Any, Figure]:
    """Room for panels of this height in inches, and half an inch under them for the scale."""
    figure = new_figure(height + 0.5)
    grid, scale = np.ravel(np.array(figure.subfigures(2, 1, height_ratios=[height, 0.5])))
    return grid, scale, figure


def _worst(layers: list[dict[str, Any]]) -> dict[str, Any] | None:
    recorded = [layer for layer in layers if layer["load"]]
    return max(recorded, key=lambda layer: as_float(layer["max_violation"]), default=None)


def _heat_map(axes: Axes, layer: dict[str, Any]) -> None:
    load = thin(np.array(layer["load"], dtype=float), MOST_COLUMNS).T
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log2(load / load.mean(0))
    first, last = layer["load_steps"][0], layer["load_steps"][-1]
    half = (last - first) / max(1, load.shape[1] - 1) / 2 or 0.5
    axes.imshow(
        np.clip(np.nan_to_num(ratio, nan=0.0), -SPREAD, SPREAD),
        cmap="cividis",
        vmin=-SPREAD,
        vmax=SPREAD,
        aspect="auto",
        interpolation="none",
        extent=(first - half, last + half, len(load) - 0.5, -0.5),
    )
    plain_ticks(axes, "xy", most=4)


def draw_scale(figure: Any) -> None:
    """The colours' meaning, once under all panels."""
    axes = figure.subplots()
    gradient = np.linspace(-SPREAD, SPREAD, 64)[None]
    axes.imshow(gradient, cmap="cividis", aspect="auto", interpolation="none", extent=(-SPREAD, SPREAD, 0, 1))
    axes.set_xticks([-2, -1, 0, 1, 2], ["¼ or less", "½", "fair share", "2 ×", "4 × or more"])
    axes.set_yticks([])
    axes.tick_params(length=0)


def _spread(layer: dict[str, Any]) -> str:
    load = np.array(layer["load"][-1], dtype=float)
    mean = load.mean() or 1.0
    return f"{number(float(load.min() / mean), 1)} to {number(float(load.max() / mean), 1)} times the mean"
