"""Gates by name: ours, those of installed packages (entry points), and those in a file."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import hashlib
import importlib
import importlib.util
import inspect
import operator
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch

from gatelab.routers.compose import compose, is_composition
from gatelab.routers.guarantees import Guarantees
from gatelab.routers.router import Router

ENTRY_POINTS = "gatelab.routers"
Maker = Callable[..., Router]
TopK = Literal["free", "fixed"]


@dataclass(frozen=True)
class Recipe:
    """A named gate.

    Attributes:
        name: as in `create_router`.
        make: (hidden_size, num_experts, top_k, **overrides) -> Router.
        source: paper, section, year; empty for a gate that does not say.
        equation: one line.
        top_k: `free`, or `fixed` when the gate itself settles the number of experts per token.
        adds_experts: whether tokens choose among more than the real experts, so that top_k may exceed these.
    """

    name: str
    make: Maker
    source: str = ""
    equation: str = ""
    top_k: TopK = "free"
    adds_experts: bool = False

    @property
    def doc(self) -> str:
        """The recipe's docstring: the equation, every deviation, when to prefer it."""
        return inspect.cleandoc(self.make.__doc__ or "")

    @property
    def deviations(self) -> str:
        """What the docstring says after "Deviations:"; empty if it names none."""
        said = re.search(r"Deviations?[^:.]*:\s+(.*?)(?=\sPrefer\b|\n\n|\Z)", self.doc, re.DOTALL)
        return " ".join(said[1].split()) if said else ""


_RECIPES: dict[str, Recipe] = {}


def recipe(
    *names: str, source: str, equation: str, top_k: TopK = "free", adds_experts: bool = False
) -> Callable[[Maker], Maker]:
    """Register a function (hidden_size, num_experts, top_k=…, **overrides) -> Router under these names."""
    if top_k not in get_args(TopK):
        raise ValueError(f"top_k={top_k!r} is unknown; choose one of {get_args(TopK)}")

    def register(make: Maker) -> Maker:
        for name in names:
            _RECIPES[name] = Recipe(name, make, source, equation, top_k, adds_experts)
        return make

    return register


@functools.cache
def _ours() -> dict[str, Recipe]:
    importlib.import_module("gatelab.routers.recipes")
    return _RECIPES


@functools.cache
def _installed() -> dict[str, EntryPoint]:
    """Gates of other installed packages, unloaded: a broken package must not break the others."""
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name, of `path.py:Name`, of `module:Name`, or of named parts (`score=cosine+select=topk`).

    Raises:
        ValueError: there is none; the message has the nearest names, or says what is wrong with the file.
    """
    if name in _ours():
        return _ours()[name]
    if name in _installed():
        return Recipe(name, _callable(name, _installed()[name].load))
    if is_composition(name):
        return Recipe(name, compose(name), source="composed of parts", equation=name)
    if ":" in name:
        return Recipe(name, _callable(name, lambda: _load(name)))
    near = difflib.get_close_matches(name, list_routers(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "see gatelab.list_routers()"
    if name.endswith(".py"):
        hint = f"name the gate in the file too, as in {name}:Gate"
    raise ValueError(f"router {name!r} is unknown; {hint}")


def _callable(name: str, load: Callable[[], Any]) -> Maker:
    try:
        maker = load()
    except Exception as error:
        raise ValueError(f"router {name!r} does not load: {type(error).__name__}: {error}") from error
    if not callable(maker):
        raise ValueError(f"router {name!r} is a {type(maker).__name__}; it must be a callable that makes a Router")
    return cast("Maker", maker)


def _load(name: str) -> Any:
    place, _, attribute = name.rpartition(":")
    module = _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    if not hasattr(module, attribute):
        raise AttributeError(f"{place} has no {attribute}")
    return getattr(module, attribute)


def _load_file(path: Path) -> Any:
    path = path.expanduser().resolve(strict=True)
    # One module per file and content: naming it twice gives the same classes, an edited file is read anew.
    digest = hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:12]
    module_name = f"gatelab_file_{digest}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def create_router(
    name: str,
    hidden_size: int,
    num_experts: int,
    top_k: int | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **overrides: Any,
) -> Router:
    """Make a gate.

    Args:
        name: one of `list_routers()`, `path.py:Name`, `module:Name`, or parts by name (`score=cosine+select=topk`, the
            rest as in `topk-softmax`).
        hidden_size: D.
        num_experts: E, the real experts.
        top_k: K, experts per token; default what is published.
        device, dtype: of the parameters; scoring runs in float32 and state stays float32 whatever they are.
        **overrides: the recipe's own options.

    Raises:
        ValueError: unknown name (with the nearest ones), a size or an option that the recipe cannot honour.
    """
    found = find_recipe(name)
    hidden_size = _positive_integer("hidden_size", hidden_size)
    num_experts = _positive_integer("num_experts", num_experts)
    top_k = None if top_k is None else _positive_integer("top_k", top_k)
    parameters = _parameters(found.make)
    if top_k is not None:
        if top_k > num_experts and not found.adds_experts:
            raise ValueError(f"top_k={top_k} is more than num_experts={num_experts}; choose at most {num_experts}")
        overrides["top_k"] = top_k
    elif "top_k" in parameters and isinstance(default := parameters["top_k"].default, int) and default > num_experts:
        overrides["top_k"] = num_experts  # fewer experts than the published K: all of them
    for option in overrides:
        if option not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            raise ValueError(f"router {name!r} has no option {option!r}; it has {', '.join(list(parameters)[2:])}")
    with torch.device(device) if device is not None else torch.device(torch.get_default_device()):
        router = found.make(hidden_size, num_experts, **overrides)
    if not isinstance(router, Router):
        raise ValueError(f"router {name!r} made a {type(router).__name__}; it must return a gatelab.Router")
    return router if dtype is None else router.to(dtype)


def _positive_integer(argument: str, value: Any) -> int:
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)  # NumPy's integers, too
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"{argument}={value!r} must be a positive integer")
    return number


def _parameters(make: Maker) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(make).parameters)


def list_routers(pattern: str = "*") -> list[str]:
    """Names of all gates, or of those that match a shell pattern such as `"*choice*"`."""
    return sorted(fnmatch.filter({*_ours(), *_installed()}, pattern))


@dataclass(frozen=True)
class Description:
    """What a gate is, promises and costs; `str()` of it reads well.

    Attributes:
        name, source, equation, doc, deviations: of the recipe.
        training, evaluation: its guarantees in either mode.
        hidden_size, num_experts: D and E at which the cost was counted.
        num_parameters: learned numbers.
        flops_per_token: matrix-product FLOPs.
    """

    name: str
    source: str
    equation: str
    doc: str
    deviations: str
    training: Guarantees
    evaluation: Guarantees
    hidden_size: int
    num_experts: int
    num_parameters: int
    flops_per_token: int

    def __str__(self) -> str:
        lines = [
            self.name,
            "=" * len(self.name),
            self.equation,
            "",
            self.doc,
            "",
            f"Source: {self.source or 'not given'}",
        ]
        for mode, g in (("training", self.training), ("evaluation", self.evaluation)):
            lines.append(f"In {mode}: " + ", ".join(f"{key}={value}" for key, value in vars(g).items()))
        cost = f"{self.num_parameters:,} parameters, {self.flops_per_token:,} FLOPs per token"
        lines.append(f"Cost at D={self.hidden_size}, E={self.num_experts}: {cost}")
        return "\n".join(lines)


def describe_router(
    name: str, hidden_size: int = 1024, num_experts: int = 64, top_k: int | None = None, **overrides: Any
) -> Description:
    """Source, equation, guarantees and cost of a gate; the cost at the given sizes.

    Raises:
        ValueError: as `create_router`.
    """
    found = find_recipe(name)
    router = create_router(name, hidden_size, num_experts, top_k, device="meta", **overrides)
    return Description(
        name=name,
        source=found.source,
        equation=found.equation,
        doc=found.doc,
        deviations=found.deviations,
        training=router.train().guarantees,
        evaluation=router.eval().guarantees,
        hidden_size=hidden_size,
        num_experts=num_experts,
        num_parameters=router.num_parameters,
        flops_per_token=router.flops(1),
    )
