"""When Python may look into a tensor's memory, and whether numba is there to do it."""

import functools
import importlib
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_plain(tensor: Tensor) -> bool:
    """Whether this is eager work on memory: nothing traces it, counts it or stands for it."""
    return (
        not torch.compiler.is_compiling()
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
        and forward_ad._current_level < 0
        and torch._C._functorch.peek_interpreter_stack() is None  # pyright: ignore[reportAttributeAccessIssue]
    )


@functools.cache
def rows_in_numba() -> ModuleType | None:
    """The compiled loops over tokens; None without numba."""
    return _numba_module("_gate_rows")


@functools.cache
def scores_in_numba() -> ModuleType | None:
    """The compiled score; None without numba."""
    return _numba_module("_score_rows")


@functools.cache
def scores_in_tiles() -> ModuleType | None:
    """The same for bfloat16 by AMX; None without numba or AMX."""
    tiles = _numba_module("_amx_tiles")
    return _numba_module("_amx_scores") if tiles is not None and tiles.has_amx() else None


@functools.cache
def score_gradients_in_numba() -> ModuleType | None:
    """Its gradients; None without numba."""
    return _numba_module("_score_gradients")


def _numba_module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(f"{__package__}.{name}")
    except ImportError:
        return None
