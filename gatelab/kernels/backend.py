"""Which implementation of a primitive runs: `reference`, `cpu` or `triton`.

A backend is a package `gatelab.kernels.<backend>` whose modules are named after the primitives they implement, each
with one function of that name and the public signature. A primitive that a backend lacks comes from `reference`.
"""

import contextlib
import importlib
import os
import pkgutil
from collections.abc import Callable, Iterator

BACKENDS = ("reference", "cpu", "triton")
PACKAGE = "gatelab.kernels"
PRIMITIVES = ("attention_gate", "balanced_assignment", "expert_mlp", "group_by_expert", "local_filter", "sinkhorn")
_forced: str | None = None


def _constant(function: Callable) -> Callable:
    """`torch.compiler.assume_constant_result`, which would import the compiler, 3 s, whenever gatelab is imported."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]  # all that the original does
    return function


@contextlib.contextmanager
def use(backend: str) -> Iterator[None]:
    """Force one backend for every primitive called inside the block, whatever the device.

    Raises:
        ValueError: `backend` is none of `reference`, `cpu`, `triton`.
    """
    global _forced
    _load(_checked(backend, "backend"))
    previous, _forced = _forced, backend
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
    return {"cpu": "cpu"}.get(device_type, "reference")


# Read once a process would make the variable deaf to a test's monkeypatch; read under torch.compile it would be a
# graph break. As a compile-time constant it is neither.
@_constant
def _from_environment() -> str | None:
    name = os.environ.get("GATELAB_BACKEND")
    return _checked(name, "GATELAB_BACKEND") if name else None


def implementation(primitive: str, device_type: str) -> Callable:
    """The function that computes `primitive` (its name, e.g. `"expert_mlp"`) on tensors of `device_type`."""
    backend = backend_for(device_type)
    _load(backend)
    return _tables[backend][primitive]


_tables: dict[str, dict[str, Callable]] = {}


# To the compiler a constant: it cannot trace an import. All primitives at once, so that no later call of the same trace
# finds a table that has grown.
@_constant
def _load(backend: str) -> bool:
    if backend not in _tables:
        own = {module.name for module in pkgutil.iter_modules(importlib.import_module(f"{PACKAGE}.{backend}").__path__)}
        _tables[backend] = {
            primitive: getattr(
                importlib.import_module(f"{PACKAGE}.{backend if primitive in own else 'reference'}.{primitive}"),
                primitive,
            )
            for primitive in PRIMITIVES
        }
    return True
