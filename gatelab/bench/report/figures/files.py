"""From a drawing to files, and to markup that can stand in a page."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from xml.sax.saxutils import quoteattr

from gatelab.bench.report.figures.style import INK, PAPER, Drawing


@dataclass(frozen=True)
class Picture:
    """A drawing that was written to NAME.svg and NAME.png; `svg` is its markup for a page."""

    name: str
    title: str
    caption: str
    alt: str
    svg: str


def write_picture(drawing: Drawing, folder: Path) -> Picture:
    """Write both files, byte for byte the same for the same numbers. To be called in `style()`."""
    text = StringIO()
    with warnings.catch_warnings():
        # A name in a script that DejaVu lacks: the SVG keeps it as text, for which the reader's system has a font.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        drawing.figure.savefig(text, format="svg", metadata=nothing)
        drawing.figure.set_layout_engine("none")  # the places found for the SVG hold for the PNG
        drawing.figure.savefig(folder / f"{drawing.name}.png", dpi=200, metadata={"Software": None})
    svg = text.getvalue()
    (folder / f"{drawing.name}.svg").write_text(svg, encoding="utf-8")
    return Picture(drawing.name, drawing.title, drawing.caption, drawing.alt, _inline(drawing, svg))


def _inline(drawing: Drawing, svg: str) -> str:
    """The SVG for a page: named for screen readers, its ids its own, ink and paper those of the page."""
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)  # its one rule would hold for the whole page

    def adapt(tag: re.Match[str]) -> str:
        own = re.sub(r' id="image[^"]*"', "", tag[0])  # equal heat maps have equal ids, which nothing refers to
        own = re.sub(r'(?<= id=")|(?<=href="#)|(?<=url\(#)', f"{drawing.name}-", own)
        return own.replace(INK, "currentColor").replace(PAPER, "var(--paper)")

    body = re.sub(r"<[^>]*>", adapt, body)  # tags only: what stands between them may be a user's name
    return f'<svg {view_box[0]} role="img" aria-label={quoteattr(drawing.alt)}>{body}'
