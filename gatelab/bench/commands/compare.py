"""`gatelab compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from gatelab.bench.commands.output import PATH, json_option, print_json, progress
from gatelab.bench.compare import compare as run_comparison
from gatelab.bench.config import CompareConfig, flag
from gatelab.bench.errors import BadInput, CellFailed
from gatelab.bench.files import writing
from gatelab.routers.compose import factorial


def _size(name: str, help: str) -> Any:
    return click.option(flag(name), type=int, default=getattr(CompareConfig, name), help=help)


@click.command()
@click.option("--routers", default=",".join(CompareConfig.routers), help="Names, or path.py:Name, with commas between.")
@click.option("--vary", multiple=True, metavar="STAGE=A,B", help="Compare every combination of named parts instead.")
@click.option("--hold", multiple=True, metavar="STAGE=A", help="With --vary: a stage that stays the same.")
@click.option("--text", type=PATH, help="A file or directory [default: Python's own library].")
@click.option("--out", type=PATH, default=Path("runs/compare"), help="The run directory.")
@_size("steps", "Optimizer steps per router and seed.")
@_size("seeds", "How many seeds.")
@click.option("--seed", type=int, default=CompareConfig.first_seed, help="The first seed.")
@click.option("--device", default=CompareConfig.device, help="cpu, cuda or cuda:N.")
@click.option("--attention", default=CompareConfig.attention, help="plain, or lfa: q and k see the filtered sequence.")
@_size("num_experts", "E.")
@_size("top_k", "K, experts per token, for every gate that can honour it.")
@_size("batch_size", "Sequences per step.")
@_size("sequence_length", "Bytes per sequence.")
@_size("hidden_size", "D.")
@_size("intermediate_size", "I of one expert beside a gate that costs nothing.")
@_size("num_layers", "Layers.")
@_size("num_heads", "Attention heads.")
@click.option("--learning-rate", type=float, default=CompareConfig.learning_rate, help="Peak, the same for all.")
@json_option
def compare(
    routers: str,
    vary: tuple[str, ...],
    hold: tuple[str, ...],
    text: Path | None,
    out: Path,
    seed: int,
    as_json: bool,
    **numbers: Any,
) -> None:
    """Train the same small model once per router and seed on real text, and write the report into the run directory.

    Kill it anywhere: the same command goes on where it was. Files in the directory: see docs/results.md.

    A factorial: --vary score=linear,attention,cosine,lfa --hold select=topk. Stages: score, activation, select, weight,
    balance; a stage not named is as in topk-softmax.
    """
    names = _factorial(vary, hold) or tuple(name.strip() for name in routers.split(",") if name.strip())
    config = CompareConfig(routers=names, first_seed=seed, **numbers)
    done: dict[tuple[str, int], int] = {}
    with progress() as bar:
        task = bar.add_task("reading text", total=len(names) * config.seeds * config.steps)

        def on_step(router: str, seed: int, step: int) -> None:
            done[router, seed] = step
            bar.update(task, description=f"{router}, seed {seed}", completed=sum(done.values()))

        results = run_comparison(config, out, text=text, on_step=on_step, on_failure=_say)
        from gatelab.bench.report import write_report  # matplotlib: not beside the workers' memory

        with writing("results.json is whole: `gatelab report DIR --out ELSEWHERE` renders it"):
            page = write_report(results, out)
    if as_json:
        print_json(results)
    else:
        print(page)
    if failed := len(results["failures"]):
        total = len(names) * config.seeds
        raise CellFailed(f"{failed} of {total} cells failed, see above or {page}; the same command tries them again")


def _say(failure: dict[str, Any]) -> None:
    print(f"gatelab: {failure['router']}, seed {failure['seed']}: {failure['reason']}", file=sys.stderr)


def _factorial(vary: tuple[str, ...], hold: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the combinations; empty when none were asked for."""
    if not (vary or hold):
        return ()
    if click.get_current_context().get_parameter_source("routers") is ParameterSource.COMMANDLINE:
        raise BadInput("--routers and --vary both say what to compare; pass one of them")
    try:
        return tuple(factorial(vary, hold))
    except ValueError as error:
        raise BadInput(str(error)) from error
