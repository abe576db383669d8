"""`gatelab report A B`: two runs as one page and one Markdown file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gatelab.bench.report import notes
from gatelab.bench.report import pair as parts
from gatelab.bench.report.figures import colours, style, write_picture
from gatelab.bench.report.figures.pair import from_a_to_b
from gatelab.bench.report.markdown import bullets, escape, images, section
from gatelab.bench.report.page import render
from gatelab.bench.report.run import Run, printable


def write_comparison(
    results_a: Mapping[str, Any], results_b: Mapping[str, Any], out_dir: Path, names: tuple[str, str] = ("A", "B")
) -> Path:
    """Write comparison.html, comparison.md and figures/comparison.{svg,png}.

    Args:
        results_a: as in results.json (docs/results.md), the run to start from.
        results_b: the run to compare with it, on the routers and seeds that both have.
        out_dir: made where it is missing.
        names: what to call the two; equal ones get an A and a B.

    Returns:
        The page.

    Raises:
        ValueError, OSError: as for `write_report`.
    """
    if names[0] == names[1]:
        names = (f"{names[0]} A", f"{names[1]} B")
    pair = parts.Pair(Run(results_a), Run(results_b), *printable(names))
    folder = out_dir / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    with style():
        drawing = from_a_to_b(pair)
        picture = write_picture(drawing, folder) if drawing else None
    sections = [
        ("Quality", parts.quality(pair), notes.PAIR_QUALITY),
        ("Balance", parts.balance(pair), notes.PAIR_BALANCE),
        ("Cost", parts.cost(pair), notes.PAIR_COST),
        (
            "What was changed",
            changed := parts.changes(pair),
            "" if changed.rows else "Nothing: the settings are the same.",
        ),
    ]
    title, warnings = parts.headline(pair), parts.warnings(pair)
    text = [f"# {escape(title)}", bullets(f"**{escape(warning)}**" for warning in warnings)]
    text += images({"comparison": picture} if picture else {}, "comparison")
    text += [section(*content) for content in sections]
    (out_dir / "comparison.md").write_text("\n\n".join(filter(None, text)) + "\n", encoding="utf-8")
    page = out_dir / "comparison.html"
    shown = {"title": title, "version": pair.b.version, "warnings": warnings, "sections": sections, "picture": picture}
    page.write_text(render("comparison.html.j2", colours=colours(pair.a), **shown), encoding="utf-8")
    return page
