"""Every gate alone: its time, its work, and how far it is from reading its logits once."""

import inspect
import itertools
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gatelab.bench.speed.alternate import alternate, median_ratio
from gatelab.bench.speed.provenance import provenance
from gatelab.routers.registry import create_router, find_recipe, list_routers
from gatelab.routers.router import Router
from gatelab.routers.routing import Routing
from gatelab.routers.soft_routing import SoftRouting

COPY, MATMUL = "copy of the logits", "score matmul"
Size = tuple[int, int, int, int, int]  # B, S, D, E, K
SIZES: tuple[Size, ...] = ((4, 1024, 512, 64, 6), (4, 512, 512, 8, 2))


@dataclass(frozen=True)
class _Gate:
    router: Router
    inputs: dict[str, Any]

    def route(self, hidden: Tensor, *, training: bool) -> Routing:
        self.router.train(training)
        return self.router(hidden, **self.inputs)


def run(
    sizes: Iterable[Size] = SIZES,
    routers: Iterable[str] | None = None,
    *,
    rounds: int = 7,
    seed: int = 0,
    report: Callable[[dict], None] = lambda row: None,
) -> list[dict]:
    """Time gates of float32 on all cores, all of them in turn in every round, and check what they answer.

    Args:
        sizes: (B, S, D, E, K); a recipe that cannot have this K keeps the published one.
        routers: names as `create_router` takes them; default every registered one.
        rounds: after one that is not counted.
        seed: of hidden states and parameters.
        report: called with every row as soon as it is known.

    Returns:
        One row per size and gate, after one for a copy of the (T, E) logits, which is the limit, and one for the matrix
        product that scores them: the sizes; `experts_per_token`, the mean; `check`, "ok" or what is wrong;
        `milliseconds`, the median of a forward in evaluation mode, and its `ratio_to_copy` and `ratio_to_matmul`,
        medians over the rounds; `training_milliseconds`, of forward + backward in training mode, losses included;
        `flops` of the forward's matrix products; `bytes`, hidden states and parameters read once, the Routing written
        once; `machine`, `versions`, `commit`. Where the check fails, no time.
    """
    names = list_routers() if routers is None else list(routers)
    return [row for size in sizes for row in _compare(size, names, rounds, seed, report)]


def _compare(size: Size, names: list[str], rounds: int, seed: int, report: Callable[[dict], None]) -> list[dict]:
    B, S, D, E, _ = size
    torch.manual_seed(seed)
    hidden, weight_ED, logits_TE = torch.randn(B, S, D), torch.randn(E, D), torch.randn(B * S, E)
    target_TE = torch.empty_like(logits_TE)
    calls: dict[str, Callable[[], object]] = {
        COPY: lambda: target_TE.copy_(logits_TE),
        MATMUL: lambda: F.linear(hidden.view(B * S, D), weight_ED),
    }
    item = logits_TE.element_size()
    facts: dict[str, dict[str, Any]] = {
        COPY: {"bytes": 2 * item * B * S * E},
        MATMUL: {"bytes": item * (B * S * D + D * E + B * S * E), "flops": 2 * B * S * D * E},
    }
    for name in names:
        try:
            gate = _create(name, size)
            with torch.no_grad():
                routing = gate.route(hidden, training=False)
            check = fault(routing, gate.router) or fault(gate.route(hidden, training=True), gate.router)
        except ValueError as error:  # sizes that the recipe cannot honour
            facts[name] = {"check": str(error)}
            continue
        facts[name] = {
            "check": check or "ok",
            "experts_per_token": float(routing.tokens_per_expert.sum()) / (B * S),
            "flops": gate.router.flops(B * S),
            "bytes": _size([hidden, *gate.router.parameters(), *_tensors(routing)]),
        }
        if check is None:
            calls[name], calls[_training(name)] = _forward(gate, hidden), _step(gate, hidden)
    seconds = alternate(calls, rounds)
    rows = []
    for name, known in facts.items():
        times, training = seconds.get(name), seconds.get(_training(name))
        row = {
            "tokens": B * S,
            "hidden": D,
            "experts": E,
            "router": name,
            "experts_per_token": known.get("experts_per_token"),
            "check": known.get("check"),
            "milliseconds": 1e3 * statistics.median(times) if times else None,
            "ratio_to_copy": median_ratio(times, seconds[COPY]) if times else None,
            "ratio_to_matmul": median_ratio(times, seconds[MATMUL]) if times else None,
            "training_milliseconds": 1e3 * statistics.median(training) if training else None,
            "flops": known.get("flops"),
            "bytes": known.get("bytes"),
            **provenance(),
        }
        report(row)
        rows.append(row)
    return rows


def _training(name: str) -> str:
    return f"{name}, training"


def _create(name: str, size: Size) -> _Gate:
    """The gate with K experts per token where its recipe can have that, and the inputs that it needs."""
    B, S, D, E, K = size
    inputs: dict[str, Any] = {"token_ids": torch.randint(256, (B, S))}
    recipe = find_recipe(name)
    options: dict[str, Any] = {}
    if recipe.top_k == "free" and "top_k" in inspect.signature(recipe.make).parameters:
        options["top_k"] = K
    if name == "oracle":
        inputs["labels"] = torch.randint(E, (B, S))
    if name == "replay":
        options["routing"] = create_router("topk-softmax", D, E, K)(torch.randn(B, S, D))
    try:
        router = create_router(name, D, E, **options)
    except ValueError:
        if "top_k" not in options:
            raise
        router = create_router(name, D, E)
    return _Gate(router, inputs)


def _forward(gate: _Gate, hidden: Tensor) -> Callable[[], object]:
    def call() -> None:
        with torch.no_grad():
            gate.route(hidden, training=False)

    return call


def _step(gate: _Gate, hidden: Tensor) -> Callable[[], object]:
    leaf = hidden.clone().requires_grad_()

    def call() -> None:
        routing = gate.route(leaf, training=True)
        weights = routing.combine_weights if isinstance(routing, SoftRouting) else routing.weights
        loss = weights.square().sum() + routing.aux_loss
        if loss.requires_grad:
            loss.backward()
        gate.router.zero_grad()
        gate.router.update([])  # this is no training: nothing to warn of
        leaf.grad = None

    return call


def fault(routing: Routing | SoftRouting, router: Router) -> str | None:
    """What is wrong with a Routing, if anything: numbers, indices, an expert twice, assignments lost or invented."""
    if not all(t.isfinite().all() for t in _tensors(routing) if t.is_floating_point()):
        return "NaN or inf"
    if isinstance(routing, SoftRouting):
        rows_T = routing.combine_weights.sum((2, 3))
        return None if torch.allclose(rows_T, torch.ones_like(rows_T)) else "the weights of a token do not sum to 1"
    offsets, live = routing.expert_offsets, routing.live
    N, T = int(offsets[-1]), routing.num_tokens
    if int(offsets[0]) or (offsets.diff() < 0).any() or routing.token_index.shape[0] < N:
        return "expert_offsets are not offsets"
    tokens = routing.token_index[live]
    if ((tokens < 0) | (tokens >= T)).any():
        return "token_index is out of range"
    if (tokens * routing.num_experts + routing.expert_index[live]).unique().shape[0] < N:
        return "a token is twice at the same expert"
    if (routing.dropped < 0).any():
        return "more assignments than requested"
    promised = router.guarantees
    if promised.dropless and routing.dropped.any():
        return "assignments are dropped"
    if promised.dropless and promised.experts_per_token not in (None, N / T):
        return f"{N} assignments of {T} tokens, {promised.experts_per_token} each are promised"
    return None


def _tensors(routing: Routing | SoftRouting) -> list[Tensor]:
    values = vars(routing).values()
    flat = itertools.chain.from_iterable(value.values() if isinstance(value, dict) else [value] for value in values)
    return [value for value in flat if isinstance(value, Tensor)]


def _size(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors, each memory once: softmax scores are their own probabilities."""
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())
