"""The smallest comparison that still has everything: two layers, four experts, a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gatelab.bench.config import CompareConfig

# Matrices this small gain nothing from threads, and lose much when the machine is busy.
torch.set_num_threads(1)

TINY: dict[str, Any] = {
    "steps": 6,
    "batch_size": 2,
    "sequence_length": 16,
    "hidden_size": 16,
    "num_heads": 2,
    "num_experts": 4,
    "intermediate_size": 16,
    "seeds": 1,
}


def tiny(*routers: str, **changes: Any) -> CompareConfig:
    return CompareConfig(**{**TINY, "routers": routers, **changes})


def write_text(path: Path) -> Path:
    """Words that repeat, so that a few steps learn something."""
    path.write_text("def gate(tokens, experts):\n    return experts[tokens]\n" * 200)
    return path


# What the clock says, and nothing else, differs between two runs.
CLOCK = {"train_seconds", "tokens_per_second", "gate_seconds_per_step"}


def figures(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells without the clock."""
    return [{name: value for name, value in cell.items() if name not in CLOCK} for cell in results["cells"]]


def quiet(router: str, seed: int, step: int) -> None:
    """Nobody watches."""
