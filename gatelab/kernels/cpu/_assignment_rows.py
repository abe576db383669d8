"""Balanced assignment in numba: what needs one row of scores at a time.

A score is *lifted*: `magic` = 1.5·2⁵² grid units is added and stays. That rounds it to the grid, makes it positive, and
puts it, less any price, into one binade: there float64 subtracts exactly and orders like its bits. Integer maxima
are vectorised without fast-math, which would break the exactness.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import njit


def jit(function: Callable) -> Callable:
    """Compile at the first call, and keep the machine code on disk."""
    try:
        return njit(function, cache=True, nogil=True, error_model="numpy")
    except RuntimeError:  # nowhere to keep it: neither the package's directory nor the user's can be written
        return njit(function, nogil=True, error_model="numpy")


ABSENT = 1e300  # the cost of a move no token can make; also tells −inf from a score


class Scores(NamedTuple):
    values: np.ndarray  # (T, E)
    magic: float
    forbidden: float


@jit
def lifted(scores, t, e):
    x = np.float64(scores.values[t, e])
    return (x if x > -ABSENT else scores.forbidden) + scores.magic


@jit
def lift(scores, t, prices, row):
    """`row` (E,) becomes the lifted scores of token t, less the prices."""
    for e in range(row.shape[0]):
        row[e] = lifted(scores, t, e) - prices[e]


@jit
def largest(bits):
    top = bits[0]
    for e in range(bits.shape[0]):
        top = max(top, bits[e])
    return top


@jit
def least(bits):
    low = bits[0]
    for e in range(bits.shape[0]):
        low = min(low, bits[e])
    return low


@jit
def choose(scores, k, prices, upper):
    """The top-k sets of `scores − prices` (T, k), the best first, and their loads (E,).

    A token with a tie at its k-th place waits until all others are counted, then takes the tied experts with most
    room under `upper`.
    """
    T, E = scores.values.shape
    ids, tied, loads, row = np.empty((T, k), np.int64), np.empty(T, np.bool_), np.zeros(E, np.int64), np.empty(E)
    bits = row.view(np.int64)
    for t in range(T):
        lift(scores, t, prices, row)
        top = bits[0]
        for c in range(k):
            top = largest(bits)
            e = 0
            while bits[e] != top:
                e += 1
            ids[t, c] = e
            bits[e] = 0
        tied[t] = largest(bits) == top
        if not tied[t]:
            for c in range(k):
                loads[ids[t, c]] += 1
    for t in range(T):
        if tied[t]:
            _break_tie(scores, t, prices, upper, ids[t], loads, row, bits)
    return ids, loads


@jit
def _break_tie(scores, t, prices, upper, ids, loads, row, bits):
    lift(scores, t, prices, row)
    k = ids.shape[0]
    value = bits[ids[k - 1]]
    c = 0
    while bits[ids[c]] > value:
        loads[ids[c]] += 1
        c += 1
    while c < k:
        best = -1
        for e in range(row.shape[0]):
            if bits[e] == value and (best < 0 or upper[e] - loads[e] > upper[best] - loads[best]):
                best = e
        ids[c] = best
        bits[best] = 0
        loads[best] += 1
        c += 1


@jit
def not_top_k(scores, prices, ids):
    """Σ over tokens of how far, in grid units, an expert not held beats one held; an expert held twice counts one."""
    row = np.empty(prices.shape[0])
    bits = row.view(np.int64)
    total = 0
    for t in range(ids.shape[0]):
        lift(scores, t, prices, row)
        worst = bits[ids[t, 0]]
        for c in range(ids.shape[1]):
            e = ids[t, c]
            if bits[e] == 0:
                total += 1
            else:
                worst = min(worst, bits[e])
            bits[e] = 0
        total += max(0, largest(bits) - worst)
    return total
