"""Balanced assignment in numba: where the search starts, and the search."""

import numpy as np

from gatelab.kernels.cpu._assignment_flow import balance
from gatelab.kernels.cpu._assignment_hub import hub
from gatelab.kernels.cpu._assignment_near import MEMBERS, choose_near, nothing_near, windows
from gatelab.kernels.cpu._assignment_order import line_up
from gatelab.kernels.cpu._assignment_reprice import reprice
from gatelab.kernels.cpu._assignment_rows import Scores, best_first, choose, jit
from gatelab.kernels.cpu._assignment_sweeps import sweep

SLOW = 1 / 3  # of the overflow is left by sweeps


@jit
def solve(scores, lower, upper, k, starts):
    """The optimal expert_ids (T, k) and prices (E,), from the best of some start prices (S, E), or from better ones.

    Prices serve if few tokens sit on an over-full expert there (12 %, counted on a sample). Otherwise a few tokens are
    solved first, then four times as many from their prices, and so on: no temperature, no step size. For k > 1 sweeps
    bring the prices nearer before tokens are moved.
    """
    T, E = scores.values.shape
    order = np.arange(T)
    # For k > 1 a pass costs more, and fewer tokens tell as much.
    few = max(4096, 16 * E) if k == 1 else max(512, 4 * E)
    sample, low, high = _every(scores, lower, upper, order, max(1, T // few))
    n = sample.values.shape[0]
    best, fewest = 0, n * k + 1
    ids, loads = np.empty((0, k), np.int64), lower
    for s in range(starts.shape[0]):
        chosen, counted = choose(sample, k, starts[s], high)
        overflow = _overflow(low, high, n * k, starts[s], counted)[0]
        if overflow < fewest:
            best, fewest, ids, loads = s, overflow, chosen, counted
    stride = 1
    while fewest > 0.12 * n * k and T * k > E * stride:
        stride *= 4
    prices, coarsest = starts[best], stride
    direct = k == 1 or fewest <= E  # too little to move for sweeps to pay
    if stride == 1 and n == T and direct:
        prices = balance(scores, lower, upper, prices, ids, loads, nothing_near(), prices)
        return best_first(scores, prices, ids), prices
    lined_up, window = False, np.empty(0)
    while True:
        sample, low, high = _every(scores, lower, upper, order, stride)
        if direct or (stride > 1 and stride == coarsest):
            ids, loads = choose(sample, k, prices, high)
            prices = balance(sample, low, high, prices, ids, loads, nothing_near(), prices)
        else:
            if window.shape[0] == 0 or T * k < 4 * MEMBERS * E * stride:  # a coarser level knew them
                window = windows(sample, k, prices)
            ids, better, found = _approach(sample, low, high, k, prices, window.copy(), lined_up, stride == 1)
            if not found:
                order, lined_up = line_up(scores, k, prices), True
                if stride == 1:
                    stride, window = _coarse(T * k, E), np.empty(0)
                continue
            prices = better
        if stride == 1:
            return best_first(scores, prices, ids), prices
        if k == 1 and stride == coarsest:
            order = line_up(scores, k, prices)
        stride //= 4


@jit
def _coarse(assignments, E):
    stride = 1
    while assignments > 64 * E * stride:
        stride *= 4
    return stride


@jit
def _approach(scores, lower, upper, k, prices, window, lined_up, to_the_end):
    """The optimum; if not `to_the_end`, near prices where sweeps are enough to find them.

    Neither if sweeps get nowhere near, where a sample's errors are costly, and the sample was not `lined_up`.
    """
    T, E = scores.values.shape
    ids, loads, near = choose_near(scores, k, prices, upper, window)
    over, hub_price = _overflow(lower, upper, T * k, prices, loads)
    if 4 * over > E:
        change, left = sweep(near, scores.magic, prices, window, loads, lower, upper, hub_price)
        if not (lined_up or to_the_end):
            return ids, prices + change, over <= E or left < SLOW
        prices = prices + change
        if not reprice(near, window, change, ids, loads):
            ids, loads, near = choose_near(scores, k, prices, upper, window)
        remaining = _overflow(lower, upper, T * k, prices, loads)[0]
        if not lined_up and remaining > 4 * E and SLOW * over < remaining:
            return ids, prices, False
        if 4 * remaining > over:  # moves will go beyond the windows
            near = nothing_near()
    return ids, balance(scores, lower, upper, prices, ids, loads, near, window), True


@jit
def _overflow(lower, upper, total, prices, loads):
    """How many assignments have to move, and the hub's price."""
    graph = hub(lower, upper, total, prices, loads)
    return np.sum(np.maximum(graph.excess, 0)), graph.price[-1]


@jit
def _every(scores, lower, upper, order, stride):
    """Every stride-th token in that order, with the bounds scaled and loosened to whole tokens."""
    if stride == 1:
        return scores, lower, upper
    T, E = scores.values.shape
    n = -(-T // stride)
    values = np.empty((n, E), scores.values.dtype)
    for t in range(n):
        values[t] = scores.values[order[t * stride]]
    return Scores(values, scores.magic, scores.forbidden), lower * n // T, -(-upper * n // T)
