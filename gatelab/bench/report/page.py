"""The report as one self-contained page: styles, script and figures inside, nothing fetched."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from gatelab.bench.report import notes
from gatelab.bench.report.figures import Picture, colours
from gatelab.bench.report.run import Run
from gatelab.bench.report.summary import Summary
from gatelab.bench.report.tables import balance, cost, guarantees, layers, quality, seeds


def report_page(
    run: Run, summary: Summary, pictures: Mapping[str, Picture], layer_pictures: Mapping[str, Picture]
) -> str:
    """The markup of report.html."""
    tables = {"quality": quality(run), "balance": balance(run), "cost": cost(run), "guarantees": guarantees(run)}
    gates = [
        {
            "name": name,
            "line": notes.gate_line(run, name),
            "facts": notes.gate_facts(run, name),
            "seeds": seeds(run, name),
            "layers": layers(run, name),
            "picture": layer_pictures.get(name),
        }
        for name in run.routers
    ]
    return render(
        "report.html.j2",
        title=summary.headline,
        version=run.version,
        summary=summary,
        machine=notes.machine(run),
        tables=tables,
        notes=notes,
        fallbacks=notes.fallbacks(run),
        colours=colours(run),
        pictures=pictures,
        gates=gates,
    )


def render(template: str, **values: Any) -> str:
    """A template with our styles and script; every value is escaped but the figures' markup, which is ours."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("gatelab.bench.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css, script = (environment.get_template(name).render() for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(css=css, script=script, script_hash=f"sha256-{digest}", **values)
