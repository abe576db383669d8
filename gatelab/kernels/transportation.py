"""The transportation problem behind `balanced_assignment`: its grid, its start prices and the proof of an answer."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Grid(NamedTuple):
    """Multiples of a power of two, few enough that float64 adds and subtracts them exactly.

    `magic` is 1.5·2⁵² units: adding and subtracting it rounds to the grid. `forbidden` is what −inf becomes: so low
    that one forbidden pair fewer is worth more than all that the other scores can do.
    """

    unit: float
    magic: float
    forbidden: float

    def round(self, values: np.ndarray) -> np.ndarray:
        values = np.where(values == -np.inf, self.forbidden, values.astype(np.float64))
        return (values + self.magic) - self.magic


class Problem(NamedTuple):
    """k of E experts for each of T tokens, `lower ≤ load ≤ upper`, the largest sum of `scores`.

    `scores` (T, E) is float32 or float64, C-contiguous, without NaN, +inf and masked rows; the bounds can be met.
    """

    scores: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    k: int
    grid: Grid

    def sample(self, stride: int) -> "Problem":
        """Every stride-th token, with the bounds scaled and loosened to whole tokens."""
        if stride == 1:
            return self
        scores = np.ascontiguousarray(self.scores[::stride])
        n, T = len(scores), len(self.scores)
        return self._replace(scores=scores, lower=self.lower * n // T, upper=-(-self.upper * n // T))

    def hub(self, prices: np.ndarray, loads: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The hub that goes with prices and loads.

        An expert's tokens above its lower bound count as the hub's. Expert e and the hub trade them freely, so at the
        optimum an expert dearer than the hub has all of its `upper − lower`, a cheaper one has none.

        Returns:
            The prices (E+1,), the hub's last; what the hub holds of each expert (E,); the excess of every node (E+1,).
        """
        width = self.upper - self.lower
        if not width.any():
            return np.append(prices, 0.0), width, np.append(loads - self.lower, 0)
        demand = len(self.scores) * self.k - self.lower.sum()
        dearest = np.argsort(-prices, kind="stable")
        last = dearest[min(np.searchsorted(np.cumsum(width[dearest]), demand), len(prices) - 1)]
        above = loads - self.lower
        held = np.where(prices == prices[last], np.clip(above, 0, width), width * (prices > prices[last]))
        return np.append(prices, prices[last]), held, np.append(above - held, held.sum() - demand)

    def overflow(self, prices: np.ndarray, loads: np.ndarray) -> int:
        """How many assignments have to move."""
        return np.maximum(self.hub(prices, loads)[2], 0).sum()


class Solver(NamedTuple):
    """What a backend brings.

    Attributes:
        choose: each token's top k of scores − prices, in a form of the backend's own, and the loads (E,).
        solve: the optimal `expert_ids` (T, k) and prices (E,), from some prices and what `choose` made of them.
        not_top_k: by how much expert_ids (T, k) fail to be k distinct experts and a top-k set of scores − prices.
    """

    choose: Callable[[Problem, np.ndarray], tuple[np.ndarray, np.ndarray]]
    solve: Callable[[Problem, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
    not_top_k: Callable[[Problem, np.ndarray, np.ndarray], float]


def solve_from(problem: Problem, starts: list[np.ndarray], solver: Solver) -> tuple[np.ndarray, np.ndarray]:
    """Solve from the best of some start prices, or from better ones: any lead to the optimum, near ones sooner.

    Prices serve if few tokens sit on an over-full expert there (12 %, counted on a sample). Otherwise every fourth
    token is solved first, recursively, and its prices serve: no temperature, no step size.

    Returns:
        The optimal expert_ids (T, k) and prices (E,), of mean 0: only their differences count, and carried from batch
        to batch they shall not drift.
    """
    T, E = problem.scores.shape
    sample = problem.sample(max(1, T // max(2048, 16 * E)))
    choices = [solver.choose(sample, start) for start in starts]
    overflows = [sample.overflow(start, loads) for start, (_, loads) in zip(starts, choices, strict=True)]
    best = int(np.argmin(overflows))
    prices, (choice, loads) = starts[best], choices[best]
    far = overflows[best] > 0.12 * problem.k * len(sample.scores) and T * problem.k > 4 * E
    if far:
        prices = solve_from(problem.sample(4), [prices], solver)[1]
    if far or sample is not problem:
        choice, loads = solver.choose(problem, prices)
    ids, prices = solver.solve(problem, prices, choice, loads)
    return ids, prices - problem.grid.round(prices.mean())


def violation(problem: Problem, expert_ids: np.ndarray, prices: np.ndarray, solver: Solver) -> float:
    """By how much the optimality conditions are violated; 0 proves the assignment (T, k) optimal on the grid."""
    loads = np.bincount(expert_ids.ravel(), minlength=len(prices))
    unmet = np.maximum(problem.lower - loads, 0).sum() + np.maximum(loads - problem.upper, 0).sum()
    could_take, could_give = prices[loads < problem.upper], prices[loads > problem.lower]
    slack = could_take.max() - could_give.min() if len(could_take) and len(could_give) else 0.0
    inexact = not (np.abs(prices) < 2.0**51 * problem.grid.unit).all()
    return float(unmet + max(slack, 0.0) + inexact + solver.not_top_k(problem, expert_ids, prices))
