"""The transportation problem behind `balanced_assignment`: its grid and the proof of an answer."""

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


class Solver(NamedTuple):
    """What a backend brings.

    Attributes:
        solve: the optimal `expert_ids` (T, k), the best `score − price` first, and prices (E,), from the best of some
            start prices (S, E). Any start leads to the optimum, a near one sooner.
        not_top_k: by how much expert_ids (T, k) fail to be k distinct experts and a top-k set of scores − prices.
    """

    solve: Callable[[Problem, np.ndarray], tuple[np.ndarray, np.ndarray]]
    not_top_k: Callable[[Problem, np.ndarray, np.ndarray], float]


def violation(problem: Problem, expert_ids: np.ndarray, prices: np.ndarray, solver: Solver) -> float:
    """By how much the optimality conditions are violated; 0 proves the assignment (T, k) optimal on the grid."""
    loads = np.bincount(expert_ids.ravel(), minlength=len(prices))
    unmet = np.maximum(problem.lower - loads, 0).sum() + np.maximum(loads - problem.upper, 0).sum()
    could_take, could_give = prices[loads < problem.upper], prices[loads > problem.lower]
    slack = could_take.max() - could_give.min() if len(could_take) and len(could_give) else 0.0
    inexact = not (np.abs(prices) < 2.0**51 * problem.grid.unit).all()
    return float(unmet + max(slack, 0.0) + inexact + solver.not_top_k(problem, expert_ids, prices))
