"""Balanced assignment in numba: where the search starts, and the search."""

import numpy as np

from gatelab.kernels.cpu._assignment_flow import balance
from gatelab.kernels.cpu._assignment_hub import hub
from gatelab.kernels.cpu._assignment_near import choose_near, nothing_near, windows
from gatelab.kernels.cpu._assignment_rows import Scores, best_first, choose, jit
from gatelab.kernels.cpu._assignment_sweeps import sweep


@jit
def solve(scores, lower, upper, k, starts):
    """The optimal expert_ids (T, k) and prices (E,), from the best of some start prices (S, E), or from better ones.

    Prices serve if few tokens sit on an over-full expert there (12 %, counted on a sample). Otherwise a few tokens are
    solved first, then four times as many from their prices, and so on: no temperature, no step size. For k > 1 sweeps
    bring the prices nearer before tokens are moved.
    """
    T, E = scores.values.shape
    # For k > 1 a pass costs more, and fewer tokens tell as much.
    sample, low, high = _every(scores, lower, upper, max(1, T // (max(4096, 16 * E) if k == 1 else max(512, 4 * E))))
    n = sample.values.shape[0]
    best, fewest = 0, n * k + 1
    ids, loads = np.empty((0, k), np.int64), lower
    for s in range(starts.shape[0]):
        chosen, counted = choose(sample, k, starts[s], high)
        overflow = _overflow(low, high, n * k, starts[s], counted)[0]
        if overflow < fewest:
            best, fewest, ids, loads = s, overflow, chosen, counted
    stride = 1
    while fewest > 0.12 * n * k and T * k > 4 * E * stride:
        stride *= 4
    prices, coarsest = starts[best], stride
    direct = k == 1 or fewest <= E  # too little to move for sweeps to pay
    if stride == 1 and n == T and direct:
        prices = balance(scores, lower, upper, prices, ids, loads, nothing_near(), prices)
        return best_first(scores, prices, ids), prices
    while True:
        sample, low, high = _every(scores, lower, upper, stride)
        if direct or (stride > 1 and stride == coarsest):
            ids, loads = choose(sample, k, prices, high)
            prices = balance(sample, low, high, prices, ids, loads, nothing_near(), prices)
        else:
            ids, prices = _sweep_and_balance(sample, low, high, k, prices, stride == 1)
        if stride == 1:
            return best_first(scores, prices, ids), prices
        stride //= 4


@jit
def _sweep_and_balance(scores, lower, upper, k, prices, to_the_end):
    """The optimum; if not `to_the_end`, near prices where sweeps are enough to find them."""
    T, E = scores.values.shape
    window = windows(scores, k, prices)
    ids, loads, near = choose_near(scores, k, prices, upper, window)
    over, hub_price = _overflow(lower, upper, T * k, prices, loads)
    if 4 * over > E:
        better, halved = sweep(near, scores.magic, prices, window, loads, lower, upper, hub_price)
        if halved and not to_the_end:
            return ids, better
        found = choose_near(scores, k, better, upper, window)
        left = _overflow(lower, upper, T * k, better, found[1])[0]
        far = 4 * left > over  # moves will go beyond the windows
        if left < over:
            prices = better
            ids, loads, near = found
        if far:
            near = nothing_near()
    return ids, balance(scores, lower, upper, prices, ids, loads, near, window)


@jit
def _overflow(lower, upper, total, prices, loads):
    """How many assignments have to move, and the hub's price."""
    graph = hub(lower, upper, total, prices, loads)
    return np.sum(np.maximum(graph.excess, 0)), graph.price[-1]


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
