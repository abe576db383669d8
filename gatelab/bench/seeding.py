"""Randomness by name: everything that is drawn has a seed of its own, so nothing depends on what was drawn before."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def seed_of(*key: str | int) -> int:
    """56 bits from the key."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "big")


@contextlib.contextmanager
def seeded(*key: str | int) -> Iterator[None]:
    """Draw from torch's default generators as if freshly seeded for this key, and leave them as they were."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed_of(*key))
        yield
