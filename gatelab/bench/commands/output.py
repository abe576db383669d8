"""What every command prints: one JSON document on stdout, or lines for people; progress on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gatelab.bench.files import plain


class _Path(click.Path):
    """A path; empty, which a shell's unset variable leaves, it is not the current directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty; name a file or a directory.", param, ctx)
        return super().convert(value, param, ctx)


PATH = _Path(path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout, nothing else.")

seed_option = click.option(
    "--seed",
    type=int,
    default=0,
    expose_value=False,
    help="For scripts that pass it to every command; nothing is drawn at random here.",
)


def print_json(value: Any) -> None:
    print(json.dumps(plain(value), indent=1, allow_nan=False))


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """A bar on stderr; what other code prints to stdout meanwhile goes to stderr too.

    In a log it is one line when all is done: what failed leaves there its message alone.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    bar = Progress(*columns, console=Console(stderr=True), redirect_stdout=False)
    with contextlib.redirect_stdout(sys.stderr):
        if sys.stderr.isatty():
            with bar:
                yield bar
        else:
            yield bar
            with bar:
                pass
