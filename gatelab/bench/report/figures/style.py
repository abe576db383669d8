"""How every figure looks: narrow enough for a phone, dark on light for paper, one colour per gate throughout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gatelab.bench.report.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

WIDTH = 4.6  # inches: a phone shows it at four fifths of its size, letters of 9 pt stay legible
INK, PAPER, FAINT = "#1f2328", "#fffffe", "#8b949e"  # INK and PAPER are replaced when a figure is put in the page

# Okabe and Ito's palette, told apart by every kind of colour vision; baselines are grey, so that colour means learned.
LEARNED = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BASELINE = "#7d8590"

STYLE: dict[str, Any] = {
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "savefig.facecolor": "auto",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "hatch.linewidth": 0.5,
    "text.parse_math": False,  # a router may be named $x$
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's own font
    "svg.hashsalt": "gatelab",
}


@dataclass(frozen=True)
class Drawing:
    """A figure with what is said about it.

    Attributes:
        name: file name without suffix; also keeps the ids of several figures in one page apart.
        alt: what it shows, for who cannot see it.
    """

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure


@contextmanager
def style() -> Iterator[None]:
    """Ours alone, whatever the user's matplotlibrc says."""
    import matplotlib.style

    with matplotlib.style.context(["default", STYLE]):
        yield


def new_figure(height: float) -> Figure:
    """A figure of the common width and this height in inches, outside pyplot: nothing to close."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def colours(run: Run) -> dict[str, str]:
    """The colour of each router, the same in every figure."""
    learned = {name: LEARNED[i % len(LEARNED)] for i, name in enumerate(run.learned)}
    return learned | dict.fromkeys(run.baselines, BASELINE)


def short(name: str, length: int = 22) -> str:
    """A path without its folders, a long name without its beginning: the end tells gates apart."""
    name = name.rsplit("/", 1)[-1]
    return name if len(name) <= length else "…" + name[1 - length :]


def name_rows(axes: Axes, names: list[str]) -> None:
    """One row per router, the first on top."""
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def plain_ticks(axes: Axes, axis: str = "x", most: int = 6) -> None:
    """Few round ticks, without offsets or powers, which would need mathematical typesetting."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for which in axis:
        part = axes.xaxis if which == "x" else axes.yaxis
        part.set_major_locator(MaxNLocator(most))
        part.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}".replace("-", "−")))


def panels(figure: FigureBase, wanted: int, columns: int = 2) -> list[Axes]:
    """A grid of axes over training steps, the lowest ones labelled; places that are left over stay empty."""
    grid = figure.subplots(-(-wanted // columns), columns, squeeze=False).ravel()
    for axes in grid[wanted:]:
        axes.set_axis_off()
    for axes in grid[max(0, wanted - columns) : wanted]:
        axes.set_xlabel("step")
    return list(grid[:wanted])


def thin(values: np.ndarray, most: int) -> np.ndarray:
    """Means of runs of neighbours along the first axis, at most `most` of them: a figure shows no more columns."""
    length = -(-len(values) // most)
    return np.array([values[start : start + length].mean(0) for start in range(0, len(values), length)])
