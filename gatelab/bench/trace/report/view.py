"""What a trace.json holds, asked by name; docs/trace.md is its schema."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gatelab.bench.report.run import printable


@dataclass(frozen=True, eq=False)
class LayerView:
    """One layer: what to call it, and its figures by the names of trace.json."""

    label: str
    figures: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.figures[name]

    @property
    def short(self) -> str:
        """For an axis."""
        return self.label.removeprefix("layer ")[-14:]


class View:
    """A finished trace.

    Args:
        results: as in trace.json.
    """

    def __init__(self, results: Mapping[str, Any]) -> None:
        results = printable(results)
        self.version: str = results["gatelab"]
        self.machine: dict[str, Any] = results["machine"]
        self.config: dict[str, Any] = results["config"]
        self.model: dict[str, Any] = results["model"]
        self.texts: list[dict[str, Any]] = results["texts"]
        self.vocabulary: dict[str, Any] = results["vocabulary"]
        self.left_out: dict[str, str] = results["left_out"]
        self.recording: dict[str, Any] = results["recording"]
        layers = results["layers"]
        names = labels([layer["name"] for layer in layers])
        self.layers = [LayerView(name, layer) for name, layer in zip(names, layers, strict=True)]

    @property
    def num_tokens(self) -> int:
        """Of all texts."""
        return sum(text["tokens"] for text in self.texts)

    def worst(self, field: str) -> LayerView:
        """The layer where a figure is largest."""
        return max(self.layers, key=lambda layer: layer[field])

    def best(self, field: str) -> LayerView:
        """The layer where a figure is smallest."""
        return min(self.layers, key=lambda layer: layer[field])


def labels(names: Sequence[str]) -> list[str]:
    """`layer 3` for `model.layers.3.mlp`, where that tells them apart; else the names."""
    numbers = [re.search(r"(?:^|\.)(\d+)(?:\.|$)", name) for name in names]
    short = [f"layer {number[1]}" if number else name for number, name in zip(numbers, names, strict=True)]
    return short if len(set(short)) == len(short) else list(names)
