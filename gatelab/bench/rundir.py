"""The run directory: one configuration, one file per finished cell, a checkpoint per cell under way."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gatelab.bench import files
from gatelab.bench.checkpoint import Checkpoint
from gatelab.bench.errors import BadInput
from gatelab.bench.shape import cell_misfit

try:
    import fcntl
except ImportError:  # not on Windows, where two runs in one directory go unnoticed
    fcntl = None

REPORTS = ("report.html", "report.md", "comparison.html", "comparison.md", "figures")
RETRAIN = "delete it and its cell is trained again"
KNOWN = {"run.json", "results.json", "cells", "checkpoints", ".lock", *REPORTS}


@contextlib.contextmanager
def opened(path: Path, config: dict[str, Any], cells: Iterable[tuple[str, int]]) -> Iterator[RunDirectory]:
    """Hold a directory for one run of one configuration.

    Args:
        path: made where it is missing; else empty, or a run of the same configuration, which goes on.
        config: JSON-ready, all that decides the results.
        cells: every (router, seed) of the run.

    Raises:
        BadInput: the directory cannot be made or written, is in use, or holds something else: another configuration, a
            truncated, foreign or newer file.
    """
    directory, run = RunDirectory(path, config, cells), path / "run.json"
    with contextlib.ExitStack() as held:
        try:
            if run.exists():
                directory.check_config(files.read_json(run, "run", "pass another --out"), config)
            directory.check_names()
            path.mkdir(parents=True, exist_ok=True)
            held.enter_context(_locked(path))
            if not run.exists():
                files.write_json(run, {"kind": "run", "schema": files.SCHEMA, "config": config})
            for place in (path, path / "cells", path / "checkpoints"):
                place.mkdir(exist_ok=True)
                files.remove_temporary(place)
        except OSError as error:
            raise BadInput(f"--out {path} cannot be written: {error.strerror or error}; pass another") from error
        if (path / "results.json").exists():
            files.read_json(path / "results.json", "results", "delete it and it is made again")
        yield directory


class RunDirectory:
    """The files of a run. Made by `opened`."""

    def __init__(self, path: Path, config: dict[str, Any], cells: Iterable[tuple[str, int]]) -> None:
        self.path = path
        self.digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
        self._names = {_name(router, seed): (router, seed) for router, seed in cells}

    def cells(self) -> dict[tuple[str, int], dict[str, Any]]:
        """The finished cells.

        Raises:
            BadInput: a cell file is damaged or not one of this run.
        """
        found = {}
        for name, key in self._names.items():
            path = self.path / "cells" / f"{name}.json"
            if path.exists():
                file = files.read_json(path, "cell", RETRAIN)
                if not self._signature("cell", key).items() <= file.items():
                    raise BadInput(f"{path} belongs to another run; {RETRAIN}")
                cell: Any = file.get("cell")
                if damage := cell_misfit(cell):
                    raise BadInput(f"{path} is damaged: {damage}; {RETRAIN}")
                if (cell["router"], cell["seed"]) != key:
                    raise BadInput(f"{path} holds the cell of {cell['router']}, seed {cell['seed']}; {RETRAIN}")
                found[key] = cell
        return found

    def write_cell(self, cell: dict[str, Any]) -> None:
        """Keep a finished cell and drop its checkpoint."""
        key = cell["router"], cell["seed"]
        path = self.path / "cells" / f"{_name(*key)}.json"
        files.write_json(path, {**self._signature("cell", key), "cell": cell})
        self.checkpoint(key).path.unlink(missing_ok=True)

    def write_results(self, results: dict[str, Any]) -> None:
        """Rewrite results.json."""
        files.write_json(self.path / "results.json", results)

    def checkpoint(self, key: tuple[str, int]) -> Checkpoint:
        """Where the state of a cell under way is kept."""
        path = self.path / "checkpoints" / f"{_name(*key)}.pt"
        return Checkpoint(path, self._signature("checkpoint", key))

    def _signature(self, kind: str, key: tuple[str, int]) -> dict[str, Any]:
        return {"kind": kind, "schema": files.SCHEMA, "run": self.digest, "router": key[0], "seed": key[1]}

    def check_names(self) -> None:
        """Raise BadInput if anything here is not ours; the leftovers of a killed run are.

        Nothing is read from figures/, so whatever lies there does no harm and stays.
        """
        started = (self.path / "run.json").exists()
        known = {
            self.path: KNOWN if started else {".lock"},
            self.path / "cells": {f"{name}.json" for name in self._names},
            self.path / "checkpoints": {f"{name}.pt" for name in self._names},
        }
        for directory, names in known.items():
            for path in sorted(directory.iterdir()) if directory.exists() else ():
                if path.name not in names and not path.name.startswith(files.TEMPORARY):
                    why = "is no file of this run" if started else "is there, but no run.json"
                    raise BadInput(f"{path} {why}; move it away or pass another --out")

    def check_config(self, run: dict[str, Any], new: dict[str, Any]) -> None:
        """Raise BadInput at the first difference."""
        old = run.get("config")
        if not isinstance(old, dict):
            raise BadInput(f"{self.path / 'run.json'} is damaged: it has no config; pass another --out")
        before, now = _flat(old), _flat(new)
        for name in [*now, *before]:
            if before.get(name) != now.get(name):
                raise BadInput(
                    f"--out {self.path} holds a run with {name}={before.get(name)}, this one has {name}="
                    f"{now.get(name)}; pass another --out, or the same configuration to go on"
                )


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Values by name, those of an object inside as `text.source`."""
    found = {}
    for name, value in config.items():
        found |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return found


def _name(router: str, seed: int) -> str:
    """A file name for a cell; names of gates may be paths."""
    slug = re.sub(r"[^A-Za-z0-9._-]", "_", router)
    if slug != router:
        slug = f"{slug[-60:]}-{hashlib.sha256(router.encode()).hexdigest()[:8]}"
    return f"{slug}-{seed}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the directory until the block or this process ends, however it ends."""
    with (path / ".lock").open("w") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BadInput(f"--out {path} is in use by another run; wait for it or pass another") from None
        yield
