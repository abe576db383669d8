"""Validation bits per byte, and how far each gate is from the reference."""

from __future__ import annotations

import math

from gatelab.bench.report.figures.style import FAINT, INK, PAPER, Drawing, colours, name_rows, new_figure, plain_ticks
from gatelab.bench.report.paired import SAME_WITHIN
from gatelab.bench.report.run import LEAKY, SCORE, Run
from gatelab.bench.report.summary import difference
from gatelab.bench.report.words import count, interval, number


def quality(run: Run) -> Drawing | None:
    """Every seed's point and the mean, a row per router; leaky figures as crosses."""
    names = sorted((n for n in run.routers if run.values(n, SCORE)), key=lambda name: run.mean(name, SCORE))
    if not names:
        return None
    figure, colour = new_figure(0.9 + 0.27 * len(names)), colours(run)
    axes = figure.add_subplot()
    ranked = [v for name in names for v in run.values(name, SCORE).values()]
    pad = 0.06 * (max(ranked) - min(ranked)) or SAME_WITHIN
    left, right = min(ranked) - pad, max(ranked) + pad
    for row, name in enumerate(names):
        axes.axhline(row, color=FAINT, linewidth=0.4, alpha=0.5, zorder=0)
        points = list(run.values(name, SCORE).values())
        axes.plot(points, [row] * len(points), "o", color=colour[name], markerfacecolor=PAPER, markersize=5)
        axes.plot(run.mean(name, SCORE), row, "|", color=colour[name], markersize=14, markeredgewidth=2)
        leaky = run.mean(name, LEAKY)
        if math.isfinite(leaky):  # it must not widen the axis: the eye would rank it
            at = min(max(leaky, left), right)
            axes.plot(
                at, row, "x" if at == leaky else "<" if at == left else ">", color=FAINT, markersize=5, clip_on=False
            )
            place = {"xytext": (6, 4), "textcoords": "offset points"}
            axes.annotate(f"leaky {number(leaky)}", (at, row), fontsize=7, **place)
    axes.set_xlim(left, right)
    name_rows(axes, names)
    plain_ticks(axes)
    axes.set_xlabel("validation bits per byte (lower is better)")
    said = ", ".join(f"{name} {number(run.mean(name, SCORE))}" for name in names)
    return Drawing(
        "quality",
        "Validation bits per byte",
        "One circle per seed, a bar at the mean. Leaky: scored while seeing later bytes, not ranked."
        if any(run.values(name, LEAKY) for name in names)
        else "One circle per seed, a bar at the mean.",
        f"Dot plot of mean validation bits per byte, lowest first: {said}.",
        figure,
    )


def distance(run: Run) -> Drawing | None:
    """Paired differences of the learned gates from the reference; an interval is cut where it leaves the plot."""
    reference = run.reference
    found = {n: d for n in run.learned if reference and n != reference and (d := difference(run, n, reference))}
    if not found:
        return None
    names = sorted(found, key=lambda name: found[name].mean)
    points = [v for d in found.values() for v in d.by_seed.values()]
    left, right = min(*points, -1.5 * SAME_WITHIN), max(*points, 1.5 * SAME_WITHIN)
    left, right = left - 0.6 * (right - left), right + 0.6 * (right - left)  # a wide interval must not dwarf the points
    figure, colour = new_figure(0.95 + 0.3 * len(names)), colours(run)
    axes = figure.add_subplot()
    axes.axvspan(-SAME_WITHIN, SAME_WITHIN, color=FAINT, alpha=0.18, linewidth=0)
    axes.axvline(0, color=INK, linewidth=0.8)
    for row, name in enumerate(names):
        d = found[name]
        low, high = max(left, d.mean - d.margin), min(right, d.mean + d.margin)
        if math.isfinite(d.margin):
            axes.plot([low, high], [row, row], color=colour[name])
            for end in {low, high} & {left, right}:
                axes.plot(end, row, "<" if end == left else ">", color=colour[name], markersize=6, clip_on=False)
        seeds = list(d.by_seed.values())
        axes.plot(seeds, [row] * len(seeds), "o", color=colour[name], markerfacecolor=PAPER, markersize=5)
        axes.plot(d.mean, row, "|", color=colour[name], markersize=14, markeredgewidth=2)
    name_rows(axes, names)
    plain_ticks(axes)
    axes.set_xlim(left, right)
    axes.set_xlabel(f"bits per byte minus {reference} (left is better)")
    said = "; ".join(f"{name} {interval(found[name])}" for name in names)
    return Drawing(
        "difference",
        f"Difference from {reference}",
        f"Paired by seed ({count(len(run.seeds), 'seed')}): circles are seeds, lines 95 % intervals, each by "
        f"itself (an arrowhead: it goes on), the grey band ±{SAME_WITHIN:g}. Where a line crosses zero these "
        "seeds do not tell the two apart.",
        f"Paired differences in bits per byte from {reference}: {said}.",
        figure,
    )
