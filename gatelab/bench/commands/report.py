"""`gatelab report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gatelab.bench.commands.output import PATH, json_option, print_json, seed_option
from gatelab.bench.errors import BadInput
from gatelab.bench.files import read_json, where_and_why
from gatelab.bench.report.run import Run


@click.command()
@click.argument("directory", metavar="DIR", type=PATH)
@click.argument("other", metavar="[DIR2]", required=False, type=PATH)
@click.option("--out", type=PATH, help="Where to write [default: the last directory named].")
@seed_option
@json_option
def report(directory: Path, other: Path | None, out: Path | None, as_json: bool) -> None:
    """Render a finished or half-finished run again, or compare two runs."""
    from gatelab.bench.report import write_comparison, write_report  # matplotlib, a second

    runs = [_results(path) for path in (directory, other) if path is not None]
    out = out or other or directory
    try:
        if other is None:
            page = write_report(runs[0], out)
        else:
            page = write_comparison(runs[0], runs[1], out, (directory.name, other.name))
    except OSError as error:
        raise BadInput(f"cannot write {where_and_why(error)}; pass another --out") from error
    if as_json:
        print_json({"page": str(page)})
    else:
        print(page)


def _results(directory: Path) -> dict[str, Any]:
    path = directory / "results.json"
    results = read_json(path, "results", "name the --out of a `gatelab compare`")
    try:
        Run(results)
    except (ValueError, RecursionError) as error:
        remedy = "undo the edit, or give the run's `gatelab compare` again, which makes it anew"
        raise BadInput(f"{path} is damaged: {error}; {remedy}") from error
    return results
