"""The figures of a trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gatelab.bench.report.figures.load import SPREAD, draw_scale
from gatelab.bench.report.figures.style import FAINT, LEARNED, Drawing, new_figure, plain_ticks
from gatelab.bench.report.words import number, percent
from gatelab.bench.trace.report.view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BY_LAYER = (
    ("max_violation_global", "MaxVio, summed"),
    ("straggler_factor", "fullest device"),
    ("gate_entropy_share", "gate entropy / ln E"),
    ("top1_margin", "margin"),
    ("vocabulary_specialization", "vocabulary"),
    ("co_activation", "closest partner"),
)


def drawings(view: View) -> list[Drawing]:
    """In the order of the page."""
    found = [load(view), by_layer(view), coverage(view), domains(view), together(view)]
    return [drawing for drawing in found if drawing is not None]


def load(view: View) -> Drawing:
    """Layer × expert, against the fair share."""
    ratio = [np.array(layer["tokens_per_expert"]) / (np.mean(layer["tokens_per_expert"]) or 1) for layer in view.layers]
    said = "; ".join(
        f"{layer.label} {number(row.min(), 2)} to {number(row.max(), 2)}"
        for layer, row in zip(view.layers, ratio, strict=True)
    )
    return _ratios(
        "load",
        "Load of every expert",
        "A row per layer, a column per expert. Grey is the fair share, yellow too much, dark blue too little.",
        f"Heat map of expert load over the mean load. Least and most loaded expert: {said}.",
        ratio,
        [layer.short for layer in view.layers],
        "layer",
    )


def domains(view: View) -> Drawing | None:
    """Text × expert in the layer where texts differ most, against an expert's share of all tokens."""
    if len(view.texts) < 2:
        return None
    layer = view.worst("domain_information")
    shares = np.array(layer["domain_specialization"])
    overall = np.array(layer["tokens_per_expert"]) / layer["tokens"]
    ratio = shares / np.where(overall > 0, overall, 1) + (overall == 0)
    names = [text["name"] for text in view.texts]
    said = "; ".join(
        f"{name} most over at expert {row.argmax()} ({number(row.max(), 2)} times its share)"
        for name, row in zip(names, ratio, strict=True)
    )
    return _ratios(
        "domains",
        f"Who uses which expert in {layer.label}",
        "A row per text, a column per expert, in the layer where the texts differ most. Grey: the text uses the expert "
        "as much as all tokens do; yellow more, dark blue less.",
        f"Heat map of the texts' use of experts against that of all tokens. {said}.",
        list(ratio),
        [name if len(name) <= 14 else "…" + name[-13:] for name in names],
        None,
    )


def _ratios(
    name: str, title: str, caption: str, alt: str, rows: list[np.ndarray], labels: list[str], axis: str | None
) -> Drawing:
    """A heat map of ratios to a fair share, with its scale."""
    height = min(max(0.7, 0.5 + 0.14 * len(rows)), 6.0)
    figure = new_figure(height + 0.5)
    grid, scale = np.ravel(np.array(figure.subfigures(2, 1, height_ratios=[height, 0.5])))
    axes = grid.subplots()
    width = max(len(row) for row in rows)
    padded = np.full((len(rows), width), np.nan)
    for row, values in zip(padded, rows, strict=True):
        with np.errstate(divide="ignore"):
            row[: len(values)] = np.clip(np.log2(values), -SPREAD, SPREAD)
    axes.imshow(padded, cmap="cividis", vmin=-SPREAD, vmax=SPREAD, aspect="auto", interpolation="none")
    _ticks(axes, "y", labels)
    _ticks(axes, "x", [str(expert) for expert in range(width)])
    axes.set_xlabel("expert")
    if axis:
        axes.set_ylabel(axis)
    draw_scale(scale)
    return Drawing(name, title, caption, alt, figure)


def by_layer(view: View) -> Drawing | None:
    """Small multiples over depth."""
    if len(view.layers) < 2:
        return None
    figure = new_figure(3.6)
    for axes, (field, title) in zip(figure.subplots(3, 2).ravel(), BY_LAYER, strict=True):
        axes.plot(_values(view, field), color=LEARNED[0], marker="o", markersize=2.5)
        axes.set_title(title, loc="left", fontweight="bold", pad=3)
        plain_ticks(axes, "y", most=4)
        axes.margins(y=0.15)
        _ticks(axes, "x", [layer.short for layer in view.layers])
    said = "; ".join(
        f"{title} {number(values[0], 2)} in {view.layers[0].label}, {number(values[-1], 2)} in {view.layers[-1].label}"
        for field, title in BY_LAYER
        for values in [_values(view, field)]
    )
    return Drawing(
        "by-layer",
        "Layer by layer",
        "First layer on the left. What each figure means stands under the tables.",
        f"Six figures over the layers. {said}.",
        figure,
    )


def coverage(view: View) -> Drawing:
    """A curve per layer over the share of experts."""
    import matplotlib

    figure = new_figure(2.6)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=FAINT, linestyle="--", linewidth=0.9)
    colours = matplotlib.colormaps["cividis"](np.linspace(0.05, 0.85, len(view.layers)))
    for layer, colour in zip(view.layers, colours, strict=True):
        curve = [0.0, *layer["coverage"]]
        axes.plot(np.linspace(0, 1, len(curve)), curve, color=colour, linewidth=1.0)
    axes.set_xlabel("share of the layer's experts, busiest first")
    axes.set_ylabel("share of assignments")
    plain_ticks(axes, "xy")
    worst, best = view.best("load_entropy"), view.worst("load_entropy")
    said = "; ".join(
        f"{layer.label}: half of the work done by {layer['experts_covering']['0.5']} of {layer['num_experts']}"
        for layer in dict.fromkeys((worst, best))
    )
    return Drawing(
        "coverage",
        "Coverage",
        "How much of the work the busiest experts do, a curve per layer, the first dark, the last light. Dashed: an "
        "even load. A cache of so many experts would serve so much at best.",
        f"Coverage curves. {said}.",
        figure,
    )


def together(view: View) -> Drawing | None:
    """The closest pair of every layer against what chance would give."""
    layers = [layer for layer in view.layers if layer["pairs"]]
    if not layers:
        return None
    figure = new_figure(2.3)
    axes = figure.add_subplot()
    positions = [index for index, layer in enumerate(view.layers) if layer["pairs"]]
    closest: list[Any] = [layer["pairs"][0]["rate"] for layer in layers]
    axes.plot(positions, closest, "o", color=LEARNED[1], markersize=4)
    axes.plot(positions, [layer["co_activation"] for layer in layers], "o", color=LEARNED[0], markersize=4)
    axes.plot(positions, [layer["co_activation_by_chance"] for layer in layers], "_", color=FAINT, markersize=9)
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("share of tokens")
    axes.set_xlabel("layer")
    _ticks(axes, "x", [layer.short for layer in view.layers])
    plain_ticks(axes, "y")
    said = "; ".join(
        f"{layer.label} closest pair {percent(rate)}, mean {percent(layer['co_activation'])}"
        for layer, rate in zip(layers, closest, strict=True)
    )
    return Drawing(
        "together",
        "Experts that work together",
        "Share of an expert's tokens that another expert also gets: orange the layer's closest pair, blue the closest "
        "partner of each expert on average, grey what random choices would give.",
        f"Co-activation by layer. {said}.",
        figure,
    )


def _values(view: View, field: str) -> list[float]:
    return [layer[field] for layer in view.layers]


def _ticks(axes: Axes, axis: str, labels: list[str], most: int = 8) -> None:
    """A few of the labels, evenly spaced, the first among them."""
    places = range(0, len(labels), -(-len(labels) // most))
    set_ticks = axes.set_xticks if axis == "x" else axes.set_yticks
    set_ticks(list(places), [labels[place] for place in places])
