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
        import numba  # noqa: F401  # whether it loads
    except ImportError as error:
        warnings.warn(
            f"balanced_assignment runs in NumPy, many times slower ({error}); pip install 'gatelab[fast]' compiles it",
            stacklevel=2,
        )
        return False
    return True


def _solve(problem: Problem, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from gatelab.kernels.cpu._assignment_levels import solve

    return solve(_scores(problem), problem.lower, problem.upper, problem.k, starts)


def _not_top_k(problem: Problem, ids: np.ndarray, prices: np.ndarray) -> float:
    from gatelab.kernels.cpu._assignment_rows import not_top_k

    return problem.grid.unit * not_top_k(_scores(problem), prices, ids)


def _scores(problem: Problem):
    from gatelab.kernels.cpu._assignment_rows import Scores

    return Scores(problem.scores, problem.grid.magic, problem.grid.forbidden)


_SOLVER = Solver(_solve, _not_top_k)
