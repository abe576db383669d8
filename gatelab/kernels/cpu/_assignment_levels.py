"""Balanced assignment in numba: where the search starts, and the search."""

import numpy as np

from gatelab.kernels.cpu._assignment_flow import balance
from gatelab.kernels.cpu._assignment_hub import hub
from gatelab.kernels.cpu._assignment_rows import Scores, choose, jit


@jit
def solve(scores, lower, upper, k, starts):
    """The optimal expert_ids (T, k) and prices (E,), from the best of some start prices (S, E), or from better ones.

    Prices serve if few tokens sit on an over-full expert there (12 %, counted on a sample). Otherwise a few tokens are
    solved first, then four times as many from their prices, and so on: no temperature, no step size.
    """
    T, E = scores.values.shape
    sample, low, high = _every(scores, lower, upper, max(1, T // max(4096, 16 * E)))
    n = sample.values.shape[0]
    best, fewest = 0, n * k + 1
    ids, loads = np.empty((0, k), np.int64), lower
    for s in range(starts.shape[0]):
        chosen, counted = choose(sample, k, starts[s], high)
        overflow = np.sum(np.maximum(hub(low, high, n * k, starts[s], counted).excess, 0))
        if overflow < fewest:
            best, fewest, ids, loads = s, overflow, chosen, counted
    stride = 1
    while fewest > 0.12 * n * k and T * k > 4 * E * stride:
        stride *= 4
    prices = starts[best]
    if stride == 1 and n == T:
        return ids, balance(scores, lower, upper, prices, ids, loads)
    while True:
        sample, low, high = _every(scores, lower, upper, stride)
        ids, loads = choose(sample, k, prices, high)
        prices = balance(sample, low, high, prices, ids, loads)
        if stride == 1:
            return ids, prices
        stride //= 4


@jit
def _every(scores, lower, upper, stride):
    """Every stride-th token, with the bounds scaled and loosened to whole tokens."""
    if stride == 1:
        return scores, lower, upper
    T, E = scores.values.shape
    n = -(-T // stride)
    values = np.empty((n, E), scores.values.dtype)
    for t in range(n):
        values[t] = scores.values[t * stride]
    return Scores(values, scores.magic, scores.forbidden), lower * n // T, -(-upper * n // T)
