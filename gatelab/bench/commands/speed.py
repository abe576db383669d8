"""`gatelab speed`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any

import click
import torch
from rich.progress import Progress

import gatelab.bench.speed as package
from gatelab.bench.commands.output import json_option, print_json, progress
from gatelab.bench.config import check_device
from gatelab.bench.errors import BadInput


def _topics(device: str) -> dict[str, Any]:
    """Name -> `run(…) -> rows`, of every module of `gatelab.bench.speed` that has one: for GPUs the `gpu_` modules."""
    names = [m.name for m in pkgutil.iter_modules(package.__path__)]
    prefix = "" if device == "cpu" else "gpu_"
    modules = {
        name.removeprefix(prefix): importlib.import_module(f"{package.__name__}.{name}")
        for name in names
        if name.startswith("gpu_") == bool(prefix)
    }
    return {name: module.run for name, module in modules.items() if hasattr(module, "run")}


@click.command()
@click.argument("topics", nargs=-1, metavar="[TOPIC]...")
@click.option("--device", default="cpu", help="cpu or cuda.")
@click.option("--seed", type=int, default=0, help="Of the inputs.")
@json_option
def speed(topics: tuple[str, ...], device: str, seed: int, as_json: bool) -> None:
    """Time our kernels against their peers and limits, alternating in one run; none named = all.

    Peers take part where they are installed (extra `peers`). Ratios are medians over the rounds.
    """
    check_device(device)
    device = torch.device(device).type
    known = _topics(device)
    for topic in topics:
        if topic not in known:
            raise BadInput(f"speed {topic!r} is unknown; choose from {', '.join(known)}")
    results: dict[str, list[dict[str, Any]]] = {}
    try:
        with progress() as bar:
            for topic in topics or known:
                results[topic] = []
                results[topic] = _measure(known[topic], bar, topic, device, seed, results[topic].append)
    finally:  # a late failure loses nothing measured before it
        if as_json:
            print_json(results)
        else:
            print(tables(results))


def _measure(
    run: Callable[..., list[dict[str, Any]]],
    bar: Progress,
    topic: str,
    device: str,
    seed: int,
    keep: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    task = bar.add_task(topic, total=None)

    def report(row: dict[str, Any]) -> None:
        keep(row)
        bar.update(task, advance=1)

    options = {"device": device, "seed": seed, "report": report}
    accepted = inspect.signature(run).parameters
    rows = run(**{name: value for name, value in options.items() if name in accepted})
    bar.update(task, total=len(rows), completed=len(rows))
    return rows


def tables(results: dict[str, list[dict[str, Any]]]) -> str:
    """What it prints for people."""
    return "\n\n".join(f"{topic}\n{_table(rows)}" for topic, rows in results.items())


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """Plain columns, one line per row."""
    if not rows:
        return "nothing was measured"
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([_text(row.get(name)) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    return "-" if value is None else str(value)
