"""The comparison: every gate in the same small model, once per seed, on real text, into a run directory."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gatelab.bench import files
from gatelab.bench.cell import Job
from gatelab.bench.config import CompareConfig
from gatelab.bench.describe import describe
from gatelab.bench.errors import BadInput, told
from gatelab.bench.machine import machine
from gatelab.bench.matching import match
from gatelab.bench.rundir import opened
from gatelab.bench.workers import run_cells
from gatelab.bench.workloads import Text, load_text

OnStep = Callable[[str, int, int], None]
OnFailure = Callable[[dict[str, Any]], None]


def compare(
    config: CompareConfig,
    out: Path,
    *,
    text: Path | None = None,
    on_step: OnStep,
    on_failure: OnFailure = lambda failure: None,
) -> dict[str, Any]:
    """Run every cell that `out` does not hold yet.

    Args:
        config: what to compare.
        out: the run directory (docs/results.md).
        text: a file or directory to train on; None = the Python standard library's own sources.
        on_step: hears a router, a seed and how many of its steps are done, finished cells of an earlier run included.
        on_failure: hears, when a cell fails, what `failures` of results.json says about it. The others go on; calling
            again tries it again.

    Returns:
        What results.json holds.

    Raises:
        BadInput: something asked for cannot be; the message names it.
        CannotWrite: the disk is full or the like; finished cells are kept.
    """
    loaded = load_text(text, config.sequence_length)
    matches, routers = {}, {}
    for name in config.routers:
        try:
            matches[name] = match(config, name)
            routers[name] = describe(config, name, matches[name])
        except ValueError as error:
            raise BadInput(f"--routers: {error}" if name in str(error) else f"--routers {name}: {error}") from error
        except (Exception, SystemExit) as error:  # the code of a gate may be the caller's and raise anything
            raise BadInput(f"--routers {name}: {told(error)}") from error
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    keys = [(name, seed) for seed in seeds for name in config.routers]  # by seed: half a run compares all routers
    described = _config(config, loaded)
    results = {
        "kind": "results",
        "schema": files.SCHEMA,
        "gatelab": _version(),
        "machine": machine(config.device),
        "config": described,
        "routers": routers,
    }
    with opened(out, _identity(config, described), keys) as directory:
        cells = directory.cells()
        for name, seed in cells:
            on_step(name, seed, config.steps)
        jobs = [
            Job(config, text, name, seed, matches[name].intermediate_size, directory.checkpoint((name, seed)))
            for name, seed in keys
            if (name, seed) not in cells
        ]
        results |= {"cells": list(cells.values()), "failures": []}
        directory.write_results(results)
        with contextlib.closing(run_cells(jobs, loaded, lambda job, step: on_step(job.router, job.seed, step))) as new:
            for outcome in new:
                if "reason" in outcome:
                    results["failures"].append(outcome)
                    on_failure(outcome)
                else:
                    directory.write_cell(outcome)
                    on_step(outcome["router"], outcome["seed"], config.steps)
                    cells[outcome["router"], outcome["seed"]] = outcome
                    results["cells"] = [cells[key] for key in keys if key in cells]
                directory.write_results(results)
    return results


def _config(config: CompareConfig, text: Text) -> dict[str, Any]:
    described = {name: value for name, value in dataclasses.asdict(config).items() if name not in ("routers", "device")}
    source = {
        "source": text.source,
        "train_bytes": len(text.train),
        "validation_bytes": len(text.validation),
        "sha256": text.sha256,
    }
    return {"text": source, **described}


def _identity(config: CompareConfig, described: dict[str, Any]) -> dict[str, Any]:
    """All that a cell's result depends on, the code of a gate in a file included."""
    sources = {name: Path(name.rpartition(":")[0]).expanduser() for name in config.routers if ".py:" in name}
    code = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sources.items()}
    versions = {"gatelab": _version(), "torch": torch.__version__}
    return {"routers": list(config.routers), "device": config.device, **described, "code": code, **versions}


def _version() -> str:
    from gatelab import __version__

    return __version__
