"""What a results.json holds, asked by name; docs/results.md is its schema."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from statistics import fmean
from typing import Any

from gatelab.bench.files import SCHEMA, plain
from gatelab.bench.report.paired import Noise, estimate_noise
from gatelab.bench.shape import results_misfit

SCORE = "val_bits_per_byte"
LEAKY = "as_trained_bits_per_byte"
REFERENCE = "topk-softmax"


class Run:
    """A finished or half-finished run. Means are over the finished seeds; what is null or not finite is absent.

    Args:
        results: as in results.json.

    Raises:
        ValueError: the schema is newer than this library's, something is missing or of another type, or a cell is there
            twice or of a router or a seed that the run does not have.
    """

    def __init__(self, results: Mapping[str, Any]) -> None:
        if results["schema"] > SCHEMA:
            raise ValueError(f"schema={results['schema']} is newer than {SCHEMA}, the one known here; update gatelab")
        results = printable(plain(results))
        if damage := results_misfit(results):
            raise ValueError(damage)
        self.version: str = results["gatelab"]
        self.machine: dict[str, Any] = results["machine"]
        self.config: dict[str, Any] = results["config"]
        self.routers: dict[str, dict[str, Any]] = results["routers"]
        self._cells: list[dict[str, Any]] = sorted(results["cells"], key=lambda cell: cell["seed"])
        self._failures: list[dict[str, Any]] = results.get("failures", [])
        self.learned = [name for name, router in self.routers.items() if not router["baseline"]]
        self.baselines = [name for name, router in self.routers.items() if router["baseline"]]
        self.reference = REFERENCE if REFERENCE in self.routers else next(iter(self.learned), None)
        first = self.config["first_seed"]
        self.seeds = range(first, first + self.config["seeds"])

    @property
    def num_finished(self) -> int:
        return len(self._cells)

    @property
    def missing(self) -> dict[str, list[int]]:
        """Seeds whose cell has neither finished nor failed, for the routers that have any."""
        done = {(cell["router"], cell["seed"]) for cell in (*self._cells, *self._failures)}
        open_seeds = {name: [seed for seed in self.seeds if (name, seed) not in done] for name in self.routers}
        return {name: seeds for name, seeds in open_seeds.items() if seeds}

    @property
    def num_failed(self) -> int:
        return len(self._failures)

    def failures(self, router: str) -> dict[str, list[int]]:
        """Why cells of a router failed, and the seeds of those that did for the same reason."""
        found: dict[str, list[int]] = {}
        for failure in self._failures:
            if failure["router"] == router:
                found.setdefault(failure["reason"], []).append(failure["seed"])
        return found

    @property
    def unscored(self) -> dict[str, list[int]]:
        """Cells with a leaky figure alone: the gate has no causal form."""
        return self._where(lambda cell: not _known(cell, SCORE) and _known(cell, LEAKY))

    @property
    def diverged(self) -> dict[str, list[int]]:
        """Cells without any finite validation figure."""
        return self._where(lambda cell: not _known(cell, SCORE) and not _known(cell, LEAKY))

    @property
    def skipped(self) -> dict[str, list[int]]:
        """Cells whose training left out steps, for want of a finite gradient."""
        return self._where(lambda cell: cell.get("skipped_steps", 0) > 0)

    def _where(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, list[int]]:
        """Seeds of the finished cells for which it holds, for the routers that have any."""
        seeds = {name: [cell["seed"] for cell in self.cells(name) if holds(cell)] for name in self.routers}
        return {name: found for name, found in seeds.items() if found}

    def cells(self, router: str) -> list[dict[str, Any]]:
        """The finished cells of a router, by seed."""
        return [cell for cell in self._cells if cell["router"] == router]

    def values(self, router: str, field: str) -> dict[int, float]:
        """A figure of the cells, by seed."""
        figures = {cell["seed"]: as_float(cell.get(field)) for cell in self.cells(router)}
        return {seed: figure for seed, figure in figures.items() if math.isfinite(figure)}

    @cached_property
    def noise(self) -> Noise:
        """Of the bits per byte of one cell."""
        return estimate_noise({name: self.values(name, SCORE) for name in self.routers})

    def mean(self, router: str, field: str) -> float:
        """NaN where no seed has the figure."""
        return mean(self.values(router, field).values())

    def layer_means(self, router: str, field: str) -> dict[str, float]:
        """A figure of each layer, mean over seeds."""
        by_layer: dict[str, list[float]] = {}
        for cell in self.cells(router):
            for layer in cell["layers"]:
                by_layer.setdefault(layer["name"], []).append(as_float(layer.get(field)))
        return {name: mean(found) for name, found in by_layer.items()}


def _known(cell: Mapping[str, Any], field: str) -> bool:
    return math.isfinite(as_float(cell.get(field)))


def as_float(value: Any) -> float:
    """NaN for null."""
    return math.nan if value is None else float(value)


def mean(values: Any) -> float:
    """Mean of the finite ones, NaN where there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return fmean(finite) if finite else math.nan


def printable(value: Any) -> Any:
    """`value` without what breaks XML, files and terminals (control characters, lone surrogates), however nested."""
    if isinstance(value, str):
        return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in value)
    if isinstance(value, Mapping):
        return {printable(key): printable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [printable(entry) for entry in value]
    return value
