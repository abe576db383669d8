"""The report as Markdown, for a terminal, a pull request or a wiki."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from gatelab.bench.report import notes
from gatelab.bench.report.figures import Picture
from gatelab.bench.report.run import Run
from gatelab.bench.report.summary import Summary
from gatelab.bench.report.tables import Cell, Table, balance, cost, guarantees, layers, quality, seeds


def report_markdown(
    run: Run, summary: Summary, pictures: Mapping[str, Picture], layer_pictures: Mapping[str, Picture]
) -> str:
    """The text of report.md."""
    fallbacks = [
        f"{name}: {text}." + (f" As trained: {leaky} bits per byte, leaky, not ranked." if leaky else "")
        for name, text, leaky in notes.fallbacks(run)
    ]
    parts = [
        f"# {escape(summary.headline)}",
        escape(f"{summary.setting} {notes.machine(run)}"),
        bullets(f"**{escape(warning)}**" for warning in summary.warnings),
        bullets(f"**{lead}.** {escape(text)}" for lead, text in summary.findings),
        section("Quality", quality(run), notes.QUALITY),
        *images(pictures, "quality", "difference", "training"),
        escape(notes.FALLBACK) if fallbacks else "",
        bullets(map(escape, fallbacks)),
        section("Balance", balance(run), notes.BALANCE),
        *images(pictures, "max-violation", "load"),
        section("Cost", cost(run), notes.COST),
        *images(pictures, "flops", "gate-time"),
        section("Guarantees", guarantees(run), notes.GUARANTEES),
        "## Gate by gate",
    ]
    for name in run.routers:
        facts = bullets(f"{term}: {escape(text)}" for term, text in notes.gate_facts(run, name))
        parts += [f"### {escape(name)}", escape(notes.gate_line(run, name)), facts]
        parts += [table(seeds(run, name)), table(layers(run, name))]
        parts += images({name: layer_pictures[name]}, name) if name in layer_pictures else []
    return "\n\n".join(filter(None, parts)) + "\n"


def section(title: str, content: Table, note: str) -> str:
    return f"## {title}\n\n{table(content)}\n\n{escape(note)}"


def table(content: Table) -> str:
    """A pipe table; empty where there is no row."""
    if not content.rows:
        return ""
    lines = [_line(map(escape, content.columns)), _line(["---", *["---:"] * (len(content.columns) - 1)])]
    return "\n".join(lines + [_line(map(_text, row)) for row in content.rows])


def bullets(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def images(pictures: Mapping[str, Picture], *names: str) -> list[str]:
    """Those that were drawn, each with its caption."""
    found = [pictures[name] for name in names if name in pictures]
    return [f"**{escape(p.title)}**\n\n![{escape(p.alt)}](figures/{p.name}.png)\n\n{escape(p.caption)}" for p in found]


def escape(text: str) -> str:
    """A backslash before whatever Markdown or HTML would read as its own."""
    return re.sub(r"([\\`*_<>\[\]|&~$#])", r"\\\1", text)


def _text(cell: Cell) -> str:
    return escape(f"{cell.text} ({cell.note})" if cell.note else cell.text)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
