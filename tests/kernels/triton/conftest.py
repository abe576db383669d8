"""Kernels run in Triton's interpreter, on memory that holds NaN until it is written."""

import os
from collections.abc import Iterator

import pytest
import torch
import triton
from triton.runtime import interpreter

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


def _count_loops_with_numpy_2_4() -> None:
    """Triton 3.6's interpreter counts loops with int() of an array of one element, which NumPy 2.4 refuses."""
    patch = interpreter._patch_lang_tensor

    def patch_and_squeeze(tensor, scope) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang_tensor = patch_and_squeeze


if triton.__version__.startswith("3.6."):
    _count_loops_with_numpy_2_4()
