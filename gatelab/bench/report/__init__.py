"""From a results.json to a page, a Markdown file and figures: `write_report`, and `write_comparison` for two runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gatelab.bench.report.comparison import write_comparison
from gatelab.bench.report.figures import write_figures
from gatelab.bench.report.markdown import report_markdown
from gatelab.bench.report.page import report_page
from gatelab.bench.report.run import Run
from gatelab.bench.report.summary import summarise

__all__ = ["write_comparison", "write_report"]


def write_report(results: Mapping[str, Any], out_dir: Path) -> Path:
    """Write report.html, report.md, figures/*.svg and figures/*.png; a half-finished run names what is missing.

    Args:
        results: as in results.json (docs/results.md).
        out_dir: made where it is missing.

    Returns:
        The page.

    Raises:
        ValueError: the schema is newer than this library's, or a cell is of a router that the run does not describe.
        OSError: full disk, read-only directory.
    """
    run = Run(results)
    summary = summarise(run)
    folder = out_dir / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    pictures, layer_pictures = write_figures(run, folder)
    (out_dir / "report.md").write_text(report_markdown(run, summary, pictures, layer_pictures), encoding="utf-8")
    page = out_dir / "report.html"
    page.write_text(report_page(run, summary, pictures, layer_pictures), encoding="utf-8")
    return page
