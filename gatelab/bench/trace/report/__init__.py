"""From a trace.json to trace.html: one self-contained page, in the style of the comparison's report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gatelab.bench.files import writing
from gatelab.bench.report.figures import style, write_picture
from gatelab.bench.report.page import render
from gatelab.bench.trace.report import notes
from gatelab.bench.trace.report.details import details
from gatelab.bench.trace.report.figures import drawings
from gatelab.bench.trace.report.summary import summarise
from gatelab.bench.trace.report.tables import balance, devices, gate, specialization
from gatelab.bench.trace.report.view import View

__all__ = ["write_page"]


@writing("trace.json is whole; free some space and trace again")
def write_page(results: Mapping[str, Any], out_dir: Path) -> Path:
    """Write trace.html and figures/*.svg, *.png.

    Args:
        results: as in trace.json (docs/trace.md).
        out_dir: exists.

    Returns:
        The page.

    Raises:
        CannotWrite: full disk, read-only directory.
    """
    view = View(results)
    folder = out_dir / "figures"
    folder.mkdir(exist_ok=True)
    with style():
        pictures = {drawing.name: write_picture(drawing, folder) for drawing in drawings(view)}
    page = out_dir / "trace.html"
    summary = summarise(view)
    markup = render(
        "trace.html.j2",
        title=summary.headline,
        version=view.version,
        summary=summary,
        pictures=pictures,
        notes=notes,
        tables={
            "balance": balance(view),
            "gate": gate(view),
            "specialization": specialization(view),
            "devices": devices(view),
        },
        layers=details(view),
        left_out=view.left_out,
    )
    page.write_text(markup, encoding="utf-8")
    return page
