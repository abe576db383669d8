"""`gatelab list`."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from gatelab.bench.commands.output import json_option, print_json, seed_option
from gatelab.bench.errors import BadInput
from gatelab.routers.registry import Description, describe_router, list_routers

COLUMNS = ("router", "causal", "token-wise", "max load", "dropless", "experts per token", "stateful")


@click.command("list")
@click.argument("pattern", default="*")
@seed_option
@json_option
def list_gates(pattern: str, as_json: bool) -> None:
    """The catalogue: what every gate promises and what it costs.

    PATTERN is a shell pattern such as '*choice*'; a single name shows the gate in full.
    """
    found = [description for name in list_routers(pattern) if (description := _described(name))]
    if not found:
        raise BadInput(f"PATTERN {pattern!r} matches no router; see `gatelab list`")
    if as_json:
        print_json([dataclasses.asdict(description) for description in found])
    elif len(found) == 1:
        print(found[0])
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(_table(found))


def _described(name: str) -> Description | None:
    try:
        return describe_router(name)
    except Exception as error:  # another package's gate may be broken; the others are still there
        print(f"gatelab: {name}: {error}", file=sys.stderr)
        return None


def _table(found: list[Description]) -> Table:
    first = found[0]
    size = f"D = {first.hidden_size}, E = {first.num_experts}"
    table = Table(
        *COLUMNS,
        "parameters",
        "FLOPs per token",
        box=None,
        header_style="bold",
        caption=f"training → evaluation where they differ; cost of the gate at {size}",
    )
    for column in table.columns[-2:]:
        column.justify = "right"
    for gate in found:
        promises = [
            _both(getattr(gate.training, name), getattr(gate.evaluation, name))
            for name in ("causal", "token_wise", "max_load", "dropless", "experts_per_token", "stateful")
        ]
        table.add_row(gate.name, *promises, f"{gate.num_parameters:,}", f"{gate.flops_per_token:,}")
    return table


def _both(training: Any, evaluation: Any) -> str:
    return _word(training) if training == evaluation else f"{_word(training)} → {_word(evaluation)}"


def _word(value: Any) -> str:
    return {True: "yes", False: "no", None: "–"}[value] if value is None or isinstance(value, bool) else f"{value:g}"
