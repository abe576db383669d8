"""Which implementation of a primitive runs: `reference`, `cpu` or `triton`.

A backend is a package `gatelab.kernels.<backend>` whose modules are named after the primitives they implement, each
with one function of that name and the public signature. A primitive that a backend lacks comes from `reference`;
`balanced_assignment`, which solves on the CPU whatever the device, from `cpu` when the backend is `triton`.
"""

import contextlib
import importlib
import os
import pkgutil
from collections.abc import Callable, Iterator

BACKENDS = ("reference", "cpu", "triton")
PACKAGE = "gatelab.kernels"
PRIMITIVES = (
    "attention_gate",
    "balanced_assignment",
    "expert_mlp",
    "group_by_expert",
    "local_filter",
    "router_logits",
    "sinkhorn",
    "topk",
    "topk_gate",
    "topk_routing",
)
# Every other device has `reference`, CUDA too until `make gpu-check` has passed on a GPU: then add "cuda": "triton".
DEFAULTS = {"cpu": "cpu"}
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
    return DEFAULTS.get(device_type, "reference")


# Read once a process would make the variable deaf to a test's monkeypatch; read under torch.compile it would be a
# graph break. As a compile-time constant it is neither.
@_constant
def _from_environment() -> str | None:
    name = os.environ.get("GATELAB_BACKEND")
    return _checked(name, "GATELAB_BACKEND") if name else None


def load(device_type: str) -> None:
    """Import the backend in force for tensors of `device_type`, whether or not it runs there yet.

    Raises:
        ImportError: it needs a package that is not installed.
    """
    _load(backend_for(device_type))


def implementation(primitive: str, device_type: str) -> Callable:
    """The function that computes `primitive` (its name, e.g. `"expert_mlp"`) on tensors of `device_type`.

    Raises:
        ImportError: the backend in force needs a package that is not installed.
        RuntimeError: it does not run on that device in this process.
    """
    backend = backend_for(device_type)
    _load(backend)
    _check_device(backend, primitive, device_type)
    return _tables[backend][primitive]


_tables: dict[str, dict[str, Callable]] = {}


# To the compiler a constant: it cannot trace an import. All primitives at once, so that no later call of the same trace
# finds a table that has grown.
@_constant
def _load(backend: str) -> bool:
    if backend not in _tables:
        own = {module.name for module in pkgutil.iter_modules(importlib.import_module(f"{PACKAGE}.{backend}").__path__)}
        lent = {"balanced_assignment": "cpu"} if backend == "triton" else {}
        sources = {name: backend if name in own else lent.get(name, "reference") for name in PRIMITIVES}
        _tables[backend] = {
            name: getattr(importlib.import_module(f"{PACKAGE}.{source}.{name}"), name)
            for name, source in sources.items()
        }
    return True


@_constant
def _check_device(backend: str, primitive: str, device_type: str) -> bool:
    if _tables[backend][primitive].__module__ == f"{PACKAGE}.triton.{primitive}":
        importlib.import_module(f"{PACKAGE}.triton").check_device(device_type)
    return True
