"""Figures of the training history: small multiples, a panel per gate."""

from __future__ import annotations

import math

import numpy as np

from gatelab.bench.report.figures.style import FAINT, Drawing, colours, new_figure, panels, plain_ticks, short, thin
from gatelab.bench.report.run import Run, as_float
from gatelab.bench.report.words import number

MOST_POINTS = 60  # batches are noisy: a point is the mean of several


def curves(run: Run, field: str, name: str, title: str, caption: str, *, unseen: float = 0.0) -> Drawing | None:
    """A figure of the training history, mean over seeds: each router before the reference and the baselines in grey.

    Args:
        run: where from.
        field: of `history`.
        name: of the file.
        title: of the figure.
        caption: under it.
        unseen: share of the first steps that may leave the panel, where they are far off the rest.
    """
    series = {router: found for router in run.routers if (found := _history(run, router, field)) is not None}
    if not series:
        return None
    figure, colour = new_figure(0.35 + 1.05 * math.ceil(len(series) / 2)), colours(run)
    settled = [values[int(unseen * len(values)) :] for _, values in series.values()]
    top = np.nanmax([np.nanmax(values) for values in settled])
    bottom = np.nanmin([np.nanmin(values) for values in settled])
    behind = [series[other] for other in (run.reference, *run.baselines) if other in series]
    for axes, router in zip(panels(figure, len(series)), series, strict=True):
        for steps, values in behind:
            axes.plot(steps, values, color=FAINT, linewidth=0.6, alpha=0.6)
        axes.plot(*series[router], color=colour[router])
        axes.set_title(short(router, 26), loc="left", fontweight="bold", pad=3)
        axes.set_ylim(bottom - 0.04 * (top - bottom), top + 0.06 * (top - bottom) + 1e-9)
        plain_ticks(axes, "xy", most=4)
    said = ", ".join(f"{router} {number(float(values[-1]), 2)}" for router, (_, values) in series.items())
    return Drawing(name, title, caption, f"{title}, a line per gate. At the end: {said}.", figure)


def _history(run: Run, router: str, field: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps and the figure's mean over seeds, thinned; None where there is no number."""
    histories = [cell["history"] for cell in run.cells(router)]
    length = min((len(history[field]) for history in histories), default=0)
    if length == 0:
        return None
    values = np.array([[as_float(v) for v in history[field][:length]] for history in histories]).mean(0)
    if not np.isfinite(values).any():
        return None
    return thin(np.array(histories[0]["step"][:length], dtype=float), MOST_POINTS), thin(values, MOST_POINTS)
