"""What a gate costs: FLOPs by part, and time."""

from __future__ import annotations

from gatelab.bench.report.figures.style import FAINT, INK, PAPER, Drawing, colours, name_rows, new_figure, plain_ticks
from gatelab.bench.report.run import Run
from gatelab.bench.report.summary import router_share
from gatelab.bench.report.words import percent, quantity

PARTS = {"router": "#D55E00", "experts": "#3a4a5e", "attention": "#8fa3b8", "other": "#d5dde5"}


def flops(run: Run) -> Drawing:
    """Forward FLOPs per token, stacked by part."""
    names = list(run.routers)
    figure = new_figure(1.15 + 0.27 * len(names))
    axes = figure.add_subplot()
    start = [0.0] * len(names)
    for part, colour in PARTS.items():
        widths = [run.routers[name]["flops_per_token"][part] / 1e6 for name in names]
        axes.barh(
            range(len(names)), widths, left=start, color=colour, edgecolor=PAPER, linewidth=0.5, label=part, height=0.7
        )
        start = [a + b for a, b in zip(start, widths, strict=True)]
    for row, name in enumerate(names):
        axes.annotate(
            percent(router_share(run, name)), (start[row], row), (4, 0), textcoords="offset points", va="center"
        )
    name_rows(axes, names)
    plain_ticks(axes)
    axes.set_xlim(0, 1.17 * max(start))
    axes.set_xlabel("forward MFLOP per token")
    figure.legend(loc="outside upper right", ncols=4, frameon=False, handlelength=1, columnspacing=1)
    said = ", ".join(f"{name} {percent(router_share(run, name))}" for name in names)
    return Drawing(
        "flops",
        "Where the FLOPs go",
        "Active forward FLOPs per token; the number at the end is the gate's share of all.",
        f"Stacked bars of forward FLOPs per token by router, experts, attention and other. Share of the gate: {said}.",
        figure,
    )


def gate_time(run: Run) -> Drawing | None:
    """Forward time of all gates in one step: every seed's point, a bar at the mean."""
    field = "gate_seconds_per_step"
    names = [name for name in run.routers if run.values(name, field)]
    if not names:
        return None
    figure, colour = new_figure(0.9 + 0.27 * len(names)), colours(run)
    axes = figure.add_subplot()
    for row, name in enumerate(names):
        points = [1e3 * seconds for seconds in run.values(name, field).values()]
        axes.barh(row, 1e3 * run.mean(name, field), color=colour[name], alpha=0.55, height=0.6)
        axes.plot(points, [row] * len(points), "o", color=INK, markerfacecolor=PAPER, markersize=4, markeredgewidth=0.8)
        axes.annotate(
            quantity(run.mean(name, field), "s"),
            (max(points), row),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    name_rows(axes, names)
    plain_ticks(axes)
    axes.set_xlim(0, 1.25 * max(1e3 * seconds for name in names for seconds in run.values(name, field).values()) or 1)
    axes.grid(axis="x", color=FAINT, linewidth=0.3, alpha=0.5)
    axes.set_xlabel("gate time, ms per step")
    said = ", ".join(f"{name} {quantity(run.mean(name, field), 's')}" for name in names)
    return Drawing(
        "gate-time",
        "Time in the gate",
        "Forward of all gates of the model, median over some steps of training; a circle per seed.",
        f"Bars of gate time per training step: {said}.",
        figure,
    )
