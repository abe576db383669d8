"""Exact balanced assignment in numba (extra `fast`); without numba, the NumPy version."""

import functools
import warnings

import numpy as np

from gatelab.kernels.assignment import Assignment, assigned
from gatelab.kernels.reference import balanced_assignment as reference
from gatelab.kernels.transportation import Problem, Solver


def balanced_assignment(scores, *, capacity=None, k=1, prices=None, token_mask=None, strict=False) -> Assignment:
    """See `gatelab.kernels.balanced_assignment`."""
    if not _has_numba():
        return reference.balanced_assignment(
            scores, capacity=capacity, k=k, prices=prices, token_mask=token_mask, strict=strict
        )
    return assigned(_SOLVER, scores, capacity, k, prices, token_mask, strict)


@functools.cache
def _has_numba() -> bool:
    try:
        import numba  # noqa: F401
    except ImportError as error:
        warnings.warn(
            f"balanced_assignment runs in NumPy, many times slower ({error}); pip install 'gatelab[fast]' compiles it",
            stacklevel=2,
        )
        return False
    return True


def _choose(problem: Problem, prices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from gatelab.kernels.cpu._assignment_rows import choose

    return choose(_scores(problem), problem.k, prices, problem.upper)


def _solve(problem: Problem, prices: np.ndarray, ids: np.ndarray, loads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from gatelab.kernels.cpu._assignment_arcs import Arcs, Members
    from gatelab.kernels.cpu._assignment_flow import Graph, Search, balance

    prices, held, excess = problem.hub(prices, loads)
    if excess.any():
        E = len(loads)
        # An expert that has tokens to give may take others for the hub first: its bound, and its excess on top.
        room = problem.upper + np.maximum(excess[:-1], 0)
        members = Members(ids, np.empty_like(ids), np.empty(room.sum(), np.int32), np.cumsum(room) - room, 0 * loads)
        table = functools.partial(np.empty, (E + 1, E + 1))
        arcs = Arcs(table(), table(np.int32), table(), table(np.int32), np.empty(E), np.zeros(E))
        key, (target, distance) = np.empty(E + 1), np.empty((2, E + 1))
        search = Search(key, key.view(np.int64), target, distance, *np.empty((4, E + 1), np.int64))
        graph = Graph(prices, excess, held, problem.upper - problem.lower)
        balance(_scores(problem), members, arcs, graph, search)
    return ids, prices[:-1]


def _not_top_k(problem: Problem, ids: np.ndarray, prices: np.ndarray) -> float:
    from gatelab.kernels.cpu._assignment_rows import not_top_k

    return problem.grid.unit * not_top_k(_scores(problem), prices, ids)


def _scores(problem: Problem):
    from gatelab.kernels.cpu._assignment_rows import Scores

    return Scores(problem.scores, problem.grid.magic, problem.grid.forbidden)


_SOLVER = Solver(_choose, _solve, _not_top_k)
