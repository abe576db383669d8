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
MANY = 0.8  # pairs a token: hardly two tokens lie on one line


@jit
def solve(scores, lower, upper, k, starts):
    """The optimal expert_ids (T, k) and prices (E,), from the best of some start prices (S, E), or from better ones.

    Prices serve if few tokens sit on an over-full expert there (12 %, counted on a sample). Otherwise a few tokens are
    solved first, then four times as many from their prices, and so on: no temperature, no step size. For k > 1 sweeps
    bring the prices nearer before tokens are moved. Where that gets nowhere near, and for k = 1 where tokens share
    few borders, they are lined up, so that a few of them tell more of all.
    """
    T, E = scores.values.shape
    # For k > 1 a pass costs more, and fewer tokens tell as much.
    few = max(4096, 16 * E) if k == 1 else max(512, 4 * E)
    order = np.arange(T)
    sample, low, high = _every(scores, lower, upper, order, max(1, T // few))
    n = sample.values.shape[0]
    best, fewest = 0, n * k + 1
    ids, loads = np.empty((0, k), np.int64), lower
    for s in range(starts.shape[0]):
        chosen, counted = choose(sample, k, starts[s], high)
        overflow = _overflow(low, high, n * k, starts[s], counted)[0]
        if overflow < fewest:
            best, fewest, ids, loads = s, overflow, chosen, counted
    prices = starts[best]
    coarsest = 1 if fewest <= 0.12 * n * k else _stride(T * k, E)
    direct = k == 1 or fewest <= E  # too little to move for sweeps to pay
    if coarsest == 1 and n == T and direct:
        prices = balance(scores, lower, upper, prices, ids, loads, nothing_near(), prices)
        return best_first(scores, prices, ids), prices
    stride, found, lined_up, pays, window = coarsest, True, False, True, np.empty(0)
    while True:
        sample, low, high = _every(scores, lower, upper, order, stride)
        if direct or (stride == coarsest and stride > 1):
            ids, loads = choose(sample, k, prices, high)
            prices = balance(sample, low, high, prices, ids, loads, nothing_near(), prices)
        else:
            if window.shape[0] == 0 or T * k < 4 * MEMBERS * E * stride:  # else a coarser level knew them
                window = windows(sample, k, prices)
            if stride > 1 and not lined_up:
                prices, found = _sweep(sample, low, high, k, prices, window)
            else:
                ids, prices, found, pays = _settle(sample, low, high, k, prices, window, lined_up, pays or stride > 1)
        if not found:
            order, found, lined_up, window = line_up(scores, k, prices)[0], True, True, np.empty(0)
            stride = stride if stride > 1 else _stride(T * k, 64 * E)
            continue
        if stride == 1:
            return best_first(scores, prices, ids), prices
        if k == 1 and 4 * stride == coarsest and line_up(sample, k, prices)[1] < MANY * sample.values.shape[0]:
            order = line_up(scores, k, prices)[0]
        stride //= 4


@jit
def _stride(assignments, fewest):
    """A power of four that leaves about so many."""
    stride = 1
    while assignments > fewest * stride:
        stride *= 4
    return stride


@jit
def _sweep(scores, lower, upper, k, prices, window):
    """Better prices, and whether they are near; if not, the same."""
    T, E = scores.values.shape
    _, loads, near = choose_near(scores, k, prices, upper, window)
    over, hub_price = _overflow(lower, upper, T * k, prices, loads)
    change, left = sweep(near, scores.magic, prices, window, loads, lower, upper, hub_price)
    near_enough = over <= E or left < SLOW
    return prices + change if near_enough else prices, near_enough


@jit
def _settle(scores, lower, upper, k, prices, window, lined_up, pays):
    """The optimal ids and prices, with sweeps before if that `pays`; whether they were found, and whether sweeps paid.

    They are not found if sweeps do not help and the tokens were not lined up.
    """
    T, E = scores.values.shape
    ids, loads, near = choose_near(scores, k, prices, upper, window)
    over, hub_price = _overflow(lower, upper, T * k, prices, loads)
    if 4 * over > E and not pays:
        near = nothing_near()  # without better prices moves will go beyond the windows
    elif 4 * over > E:
        change, left = sweep(near, scores.magic, prices, window, loads, lower, upper, hub_price)
        pays = left < 0.5
        prices, window = prices + change, window.copy()
        if not reprice(near, window, change, ids, loads):
            ids, loads, near = choose_near(scores, k, prices, upper, window)
        remaining = _overflow(lower, upper, T * k, prices, loads)[0]
        if not lined_up and remaining > 4 * E and SLOW * over < remaining:
            return ids, prices, False, True
        if 4 * remaining > over:
            near = nothing_near()
    return ids, balance(scores, lower, upper, prices, ids, loads, near, window), True, pays


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
