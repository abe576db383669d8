"""The figures of a report, in the order of the page."""

from __future__ import annotations

from pathlib import Path

from gatelab.bench.report.figures.cost import flops, gate_time
from gatelab.bench.report.figures.curves import curves
from gatelab.bench.report.figures.files import Picture, write_picture
from gatelab.bench.report.figures.load import load_by_gate, load_by_layer
from gatelab.bench.report.figures.quality import distance, quality
from gatelab.bench.report.figures.style import Drawing, colours, style
from gatelab.bench.report.run import Run
from gatelab.bench.report.words import listing

__all__ = ["Picture", "colours", "style", "write_figures", "write_picture"]


def write_figures(run: Run, folder: Path) -> tuple[dict[str, Picture], dict[str, Picture]]:
    """Write every figure for which there are numbers yet. Returns them by name, and the per-layer ones by router."""
    with style():
        overall = {drawing.name: write_picture(drawing, folder) for drawing in _overall(run) if drawing}
        by_router = {
            name: write_picture(drawing, folder)
            for i, name in enumerate(run.routers)
            if (drawing := load_by_layer(run, name, f"layers-{i}"))
        }
    return overall, by_router


def _overall(run: Run) -> tuple[Drawing | None, ...]:
    behind = f"In grey, for comparison: {listing([*dict.fromkeys(filter(None, (run.reference, *run.baselines)))])}."
    violation = curves(
        run,
        "max_violation",
        "max-violation",
        "MaxVio over training",
        "How far the busiest expert is over the mean load, mean over layers and seeds: 0 is even, 1 is twice the mean. "
        f"{behind}",
    )
    training = curves(
        run,
        "train_bits_per_byte",
        "training",
        "Training loss",
        "Bits per byte on the training batches, mean over seeds. For a gate that sees later bytes it is leaky. "
        f"{behind}",
        unseen=0.1,
    )
    return quality(run), distance(run), violation, training, load_by_gate(run), flops(run), gate_time(run)
