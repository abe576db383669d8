"""Kernels run in Triton's interpreter, on memory that holds NaN until it is written."""

import os
from collections.abc import Iterator

import pytest
import torch

# Without it, cuBLAS refuses the deterministic mode below.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """`torch.empty` and its kin return NaN, or the largest integer."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert bool(torch.empty(3).isnan().all())
    yield
    torch.use_deterministic_algorithms(False)
