"""Which implementation of a primitive runs: `reference`, `cpu` or `triton`.

A backend is a package `gatelab.kernels.<backend>` whose modules are named after the primitives they implement, each
with one function of that name and the public signature. A primitive that a backend lacks comes from `reference`.
"""

import contextlib
import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator

import torch

BACKENDS = ("reference", "cpu", "triton")
_forced: str | None = None


@contextlib.contextmanager
def use(backend: str) -> Iterator[None]:
    """Force one backend for every primitive called inside the block, whatever the device.

    Raises:
        ValueError: `backend` is none of `reference`, `cpu`, `triton`.
    """
    global _forced
    previous, _forced = _forced, _checked(backend, "backend")
    try:
        yield
    finally:
        _forced = previous


def _checked(backend: str, argument: str) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"{argument}={backend!r} is not a backend; choose one of {', '.join(BACKENDS)}")
    return backend


def backend_for(device_type: str) -> str:
    """The backend in force: the one `use` forces, else `GATELAB_BACKEND`, else the one of the device."""
    if _forced is not None:
        return _forced
    if wanted := _from_environment():
        return wanted
    return {"cpu": "cpu", "cuda": "triton"}.get(device_type, "reference")


# Read once a process would make the variable deaf to a test's monkeypatch; read under torch.compile it would be a
# graph break. As a compile-time constant it is neither.
@torch.compiler.assume_constant_result
def _from_environment() -> str | None:
    name = os.environ.get("GATELAB_BACKEND")
    return _checked(name, "GATELAB_BACKEND") if name else None


def _load(primitive: str, backend: str) -> Callable:
    module = f"gatelab.kernels.{backend}.{primitive}"
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the backend's own dependency (triton) is not installed
        found = False
    if not found:
        module = f"gatelab.kernels.reference.{primitive}"
    return getattr(importlib.import_module(module), primitive)


_load_once = functools.cache(_load)


def implementation(primitive: str, device_type: str) -> Callable:
    """The function that computes `primitive` (its name, e.g. `"expert_mlp"`) on tensors of `device_type`."""
    load = _load if torch.compiler.is_compiling() else _load_once  # the compiler cannot see through a cache
    return load(primitive, backend_for(device_type))
