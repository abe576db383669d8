"""Exact balanced assignment against its peers: all on the same scores, alternating, on one thread."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from gatelab.bench.speed.assignment_peers import SINKHORN, peers
from gatelab.kernels import balanced_assignment

Case = tuple[int, int, int]  # T, E, k
CASES: tuple[Case, ...] = (
    (1024, 16, 1),
    (4096, 64, 1),
    (4096, 64, 6),
    (16384, 256, 1),
    (16384, 256, 8),
    (65536, 256, 1),
    (65536, 256, 8),
)
FAMILIES = ("normal", "skewed", "low-rank", "tied")
MORE_FAMILIES = ("rank-1", "clustered", "geometric", "duplicated")
MANY = 4096  # tokens from which on it matters that no family is slow
LARGE = 65536  # tokens from which on the exact peers would take minutes
OURS = "gatelab"
CARRIED = "gatelab, carried prices"


def run(
    cases: Iterable[Case] = CASES,
    families: Sequence[str] | None = None,
    *,
    rounds: int = 3,
    seed: int = 0,
    report: Callable[[dict], None] = lambda row: None,
) -> list[dict]:
    """Time every solver on every case and family of scores, and check what it answers.

    The peers: 100 Sinkhorn sweeps and, below 65536 tokens, SciPy (to 4096: it needs a T×T matrix) and, where installed
    (extra `peers`), POT and OR-tools.

    Args:
        cases: (T, E, k) triples; E divides k·T.
        families: of `draw_scores`; None: normal, skewed, low-rank and tied, and four more from 4096 tokens on.
        rounds: every round times all solvers in turn, each over as many calls as fit in 20 ms, so that all run with
            warm caches; one that takes over 3 s only takes part in the first.
        seed: of the scores.
        report: called with every row as soon as it is known.

    Returns:
        One row per case, family and solver: `tokens`, `experts`, `top_k`, `scores`, `solver`; `milliseconds` of CPU
        time, the median over the rounds; `ratio` to gatelab's, the median over the rounds too; `exact`, whether the
        loads are even and the value optimal; `gap`, how far the value is below the optimum, relative (negative where
        the loads are not even); `overload`, the largest load over the even one.

    Raises:
        RuntimeError: a solver that claims exactness answers something else.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        balanced_assignment(draw_scores("skewed", 64, 8, seed))  # compiles
        return [
            row
            for case in cases
            for family in families or (FAMILIES + MORE_FAMILIES if case[0] >= MANY else FAMILIES)
            for row in _compare(case, family, rounds, seed, report)
        ]
    finally:
        torch.set_num_threads(threads)


def draw_scores(family: str, T: int, E: int, seed: int, batch: int = 0) -> Tensor:
    """(T, E) float32 scores of one batch of a stream: what makes experts popular stays, the tokens change."""
    experts, tokens = np.random.default_rng(seed), np.random.default_rng((seed, batch))
    noise = tokens.standard_normal((T, E))
    match family:
        case "normal":
            scores = noise
        case "skewed":  # popular experts
            scores = noise + 2 * experts.standard_normal(E)
        case "low-rank":
            scores = tokens.standard_normal((T, 4)) @ experts.standard_normal((4, E))
        case "rank-1":
            scores = tokens.standard_normal((T, 1)) * experts.standard_normal(E)
        case "tied":
            scores = tokens.integers(0, 8, (T, E))
        case "clustered":
            scores = 2 * experts.standard_normal((8, E))[tokens.integers(0, 8, T)] + 0.1 * noise
        case "geometric":
            scores = 0.1 * noise + np.geomspace(1, 1e3, E)
        case "duplicated":
            scores = noise[tokens.integers(0, max(1, T // 16), T)]
        case _:
            raise ValueError(f"family={family!r} is unknown; choose normal, skewed, low-rank, rank-1, tied, ...")
    return torch.from_numpy(scores.astype(np.float32))


def _compare(case: Case, family: str, rounds: int, seed: int, report: Callable[[dict], None]) -> list[dict]:
    T, E, k = case
    scores = draw_scores(family, T, E, seed)
    carried = balanced_assignment(draw_scores(family, T, E, seed, batch=1), k=k).prices
    solvers = {
        OURS: lambda scores, k: balanced_assignment(scores, k=k).expert_ids.numpy(),
        CARRIED: lambda scores, k: balanced_assignment(scores, k=k, prices=carried).expert_ids.numpy(),
        **peers(T, k, exact=T < LARGE),
    }
    seconds: dict[str, list[float]] = {name: [] for name in solvers}
    answers: dict[str, np.ndarray] = {}
    for _ in range(rounds):
        for name, solve in solvers.items():
            if not seconds[name] or seconds[name][0] < 3:
                answers[name], taken = _timed(solve, scores, k)
                seconds[name].append(taken)
    optimum = _value(scores, answers[OURS])
    rows = []
    for name, times in seconds.items():
        loads = np.bincount(answers[name].ravel(), minlength=E)
        gap = (optimum - _value(scores, answers[name])) / (abs(optimum) or 1.0)
        exact = bool((loads * E == k * T).all() and abs(gap) < 1e-7)
        if not exact and name != SINKHORN:
            raise RuntimeError(f"{name} is not optimal on {family} scores, {T}x{E}, k={k}: gap {gap:.1e}")
        row = {
            "tokens": T,
            "experts": E,
            "top_k": k,
            "scores": family,
            "solver": name,
            "milliseconds": 1e3 * statistics.median(times),
            "ratio": statistics.median(a / b for a, b in zip(times, seconds[OURS], strict=False)),
            "exact": exact,
            "gap": gap,
            "overload": float(loads.max() * E / (k * T)),
        }
        report(row)
        rows.append(row)
    return rows


def _timed(solve: Callable[[Tensor, int], np.ndarray], scores: Tensor, k: int) -> tuple[np.ndarray, float]:
    """The answer, and the CPU seconds of one call."""
    start, calls = time.process_time(), 0
    while True:
        answer = solve(scores, k)
        calls += 1
        taken = time.process_time() - start
        if taken > 0.02:
            return answer, taken / calls


def _value(scores: Tensor, expert_ids: np.ndarray) -> float:
    return float(np.take_along_axis(scores.double().numpy(), expert_ids, axis=1).sum())
