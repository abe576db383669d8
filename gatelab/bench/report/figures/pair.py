"""Both runs of a comparison, gate by gate."""

from __future__ import annotations

import math

from gatelab.bench.report.figures.style import FAINT, PAPER, Drawing, colours, name_rows, new_figure, plain_ticks
from gatelab.bench.report.pair import Pair
from gatelab.bench.report.words import number


def from_a_to_b(pair: Pair) -> Drawing | None:
    """Mean bits per byte: an open circle for a, a full one for b, a line between."""
    ends = {name: pair.means(name) for name in pair.shared}
    ends = {name: both for name, both in ends.items() if all(map(math.isfinite, both))}
    if not ends:
        return None
    figure, colour = new_figure(0.9 + 0.27 * len(ends)), colours(pair.a)
    axes = figure.add_subplot()
    for row, (name, (a, b)) in enumerate(ends.items()):
        axes.axhline(row, color=FAINT, linewidth=0.4, alpha=0.5, zorder=0)
        axes.plot([a, b], [row, row], color=colour[name])
        axes.plot(a, row, "o", color=colour[name], markerfacecolor=PAPER, markersize=6)
        axes.plot(b, row, "o", color=colour[name], markersize=6)
    name_rows(axes, list(ends))
    plain_ticks(axes)
    axes.set_xlabel("validation bits per byte (lower is better)")
    said = ", ".join(f"{name} {number(a)} to {number(b)}" for name, (a, b) in ends.items())
    return Drawing(
        "comparison",
        "From one run to the other",
        f"Mean over the shared seeds: open circle {pair.name_a}, full circle {pair.name_b}.",
        f"Mean validation bits per byte from {pair.name_a} to {pair.name_b}: {said}.",
        figure,
    )
