"""Where a figure comes from: the machine, the versions, the commit."""

import functools
import importlib.metadata
import subprocess
from pathlib import Path

import torch

from gatelab.bench.machine import processor


@functools.cache
def provenance() -> dict[str, str]:
    """`machine` (processor and threads), `versions` and `commit` (of a checkout, else "") of this process."""
    return {
        "machine": f"{processor()}, {torch.get_num_threads()} threads",
        "versions": ", ".join(f"{name} {_version(name)}" for name in ("gatelab", "torch", "transformers")),
        "commit": _commit(),
    }


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
