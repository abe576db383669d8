"""The whole layer, gate included, against a dense layer of the same active FLOPs and against other libraries."""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gatelab import kernels
from gatelab.bench.speed.layer_peers import DenseSwiGLU, another_function, same_function
from gatelab.bench.speed.provenance import provenance
from gatelab.layers.experts import Experts
from gatelab.layers.moe import MoE
from gatelab.routers.registry import create_router

OURS, DENSE, COPY = "gatelab", "dense SwiGLU", "copy of the used weights"
FEW_TOKENS = 16


@dataclass(frozen=True)
class Case:
    """Sizes and type of one layer; `backward` times forward + backward."""

    T: int
    D: int
    I: int
    E: int
    K: int
    dtype: torch.dtype = torch.float32
    backward: bool = False


CASES = (
    *(Case(2048, 512, 1024, 8, 2, dtype, b) for dtype in (torch.float32, torch.bfloat16) for b in (False, True)),
    *(Case(4096, 512, 256, 64, 6, dtype, b) for dtype in (torch.float32, torch.bfloat16) for b in (False, True)),
    *(Case(T, 1024, 512, 64, 8, dtype) for dtype in (torch.float32, torch.bfloat16) for T in (FEW_TOKENS, 1)),
)


def run(
    cases: Iterable[Case] = CASES,
    *,
    rounds: int = 9,
    seed: int = 0,
    report: Callable[[dict], None] = lambda row: None,
) -> list[dict]:
    """Time the layers on every case, on all cores, all of them in turn in every round.

    Peers: `transformers` (Mixtral's block: eager and grouped_mm) with our weights, st-moe-pytorch with its own, where
    installed (extra `peers`). For few tokens also a plain copy of the weights of the experts that were used.

    Args:
        cases: what to time.
        rounds: after one that is not counted.
        seed: of weights and tokens.
        report: called with every row as soon as it is known.

    Returns:
        One row per case and layer: the sizes, `pass`, `layer`; `check`, how far its output is from the reference's
        relative to it, or why there is nothing to compare; `milliseconds`, the median over the rounds; `ratio` to the
        dense layer, the median over the rounds; `machine`, `versions`, `commit`. Where the check fails, no time.
    """
    return [row for case in cases for row in _compare(case, rounds, seed, report)]


def _compare(case: Case, rounds: int, seed: int, report: Callable[[dict], None]) -> list[dict]:
    torch.manual_seed(seed)
    x_TD = torch.randn(case.T, case.D).to(case.dtype)
    router = create_router("topk-softmax", hidden_size=case.D, num_experts=case.E, top_k=case.K)
    experts = Experts(case.E, case.D, case.I)
    moe = MoE(router, experts).to(case.dtype)
    gate_ED = router.get_parameter("score.weight")
    comparable: dict[str, nn.Module] = {OURS: moe.as_block(), **same_function(gate_ED, experts, case.K)}
    others = another_function(case.D, case.I, case.E, case.K) if case.dtype == torch.float32 else {}
    checks: dict[str, float | str] = {**_checks(moe, comparable, x_TD)} | dict.fromkeys(others, "drops tokens")
    layers = {DENSE: DenseSwiGLU(case.D, case.K * case.I).to(case.dtype), **comparable, **others}
    timed = {name: _call(layer, x_TD, case.backward) for name, layer in layers.items() if _passes(checks.get(name))}
    if case.T <= FEW_TOKENS and not case.backward:
        timed[COPY] = _copy_of_used_weights(moe, experts, x_TD)
    seconds = _alternate(timed, rounds)
    rows = []
    for name in [*layers, *([COPY] if COPY in timed else [])]:
        times = seconds.get(name)
        row = {
            "tokens": case.T,
            "hidden": case.D,
            "intermediate": case.I,
            "experts": case.E,
            "top_k": case.K,
            "dtype": str(case.dtype).removeprefix("torch."),
            "pass": "forward + backward" if case.backward else "forward",
            "layer": name,
            "check": checks.get(name),
            "milliseconds": 1e3 * statistics.median(times) if times else None,
            "ratio": statistics.median(a / b for a, b in zip(times, seconds[DENSE], strict=True)) if times else None,
            **provenance(),
        }
        report(row)
        rows.append(row)
    return rows


def _checks(moe: MoE, layers: dict[str, nn.Module], x_TD: Tensor) -> dict[str, float]:
    """Each layer's distance from the reference on the first tokens, relative to its norm."""
    x_TD = x_TD[:64]
    with torch.no_grad():
        with kernels.use("reference"):
            expected = moe(x_TD)[0].double()
        return {name: float((layer(x_TD) - expected).norm() / expected.norm()) for name, layer in layers.items()}


def _passes(check: float | str | None) -> bool:
    return not isinstance(check, float) or check < 0.02  # bfloat16 rounds to 2⁻⁹ several times; NaN fails too


def _call(layer: nn.Module, x_TD: Tensor, backward: bool) -> Callable[[], None]:
    grad_TD, x_leaf = torch.randn_like(x_TD), x_TD.clone().requires_grad_(backward)

    def call() -> None:
        with torch.set_grad_enabled(backward):
            y_TD = layer(x_leaf)
        if backward:
            y_TD.backward(grad_TD)
            layer.zero_grad()
            x_leaf.grad = None

    return call


def _copy_of_used_weights(moe: MoE, experts: Experts, x_TD: Tensor) -> Callable[[], None]:
    """The least a forward on few tokens can take is to read each used expert's weights once."""
    with torch.no_grad():
        used = moe(x_TD)[1].tokens_per_expert.nonzero().flatten().tolist()
    sources = [weight.detach()[e] for e in used for weight in (experts.gate_up_proj, experts.down_proj)]
    targets = [torch.empty_like(source) for source in sources]

    def call() -> None:
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)

    return call


def _alternate(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds
