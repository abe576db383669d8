"""Balanced assignment in numba: an order of the tokens in which every stride-th of them stands for all.

Tokens change hands at the border of their sets, between the k-th expert and the next. Those with the same pair lie on
a line there, so a systematic sample along it has the same loads as all tokens, up to one token a border, at these
prices and at near ones; a random sample errs by the square root of what moved. Systematic sampling of ordered units:
Cochran, Sampling Techniques (1977), chapter 8.
"""

import numpy as np

from gatelab.kernels.cpu._assignment_rows import inner, jit, largest_below, lift

BINS = 1024  # on either side of a border


@jit
def line_up(scores, k, prices):
    """The tokens (T,) by the pair of their k-th expert and the next, within a pair by how far the one is ahead.

    Every second pair runs backwards: so the tokens of an expert that two pairs share lie side by side.

    Returns:
        The tokens in that order, and how many pairs there are.
    """
    T, E = scores.values.shape
    row, first, second, ahead = np.empty(E), np.empty(T, np.int64), np.empty(T, np.int64), np.empty(T)
    bits = row.view(np.int64)
    for t in range(T):
        top = lift(scores, t, prices, row)
        for _ in range(1, k):
            top = max(largest_below(bits, top), np.int64(1))  # fewer than k values
        i, j = _position(bits, top), _position(bits, largest_below(bits, top))
        first[t], second[t] = min(i, j), max(i, j)
        ahead[t] = row[first[t]] - row[second[t]]
    middle = max(np.mean(np.abs(ahead)), 1e-300)
    bins = (BINS * (1 + ahead / (np.abs(ahead) + middle))).astype(np.int64)
    order = _sorted(np.arange(T), bins, 2 * BINS + 1)
    order = _sorted(_sorted(order, second, E), first, E)
    begin, pairs = 0, 0
    for x in range(1, T + 1):
        if x == T or first[order[x]] != first[order[begin]] or second[order[x]] != second[order[begin]]:
            if pairs % 2 == 1:
                order[begin:x] = order[begin:x][::-1].copy()
            begin, pairs = x, pairs + 1
    return order, pairs


@inner
def _position(bits, top):
    """An expert that reaches `top`."""
    found = np.int64(0)
    for e in range(bits.shape[0]):
        found = max(found, np.int64(e) if bits[e] == top else np.int64(0))
    return found


@jit
def _sorted(order, key, keys):
    """The same tokens by key, 0 to keys − 1; where it is the same, as they were."""
    place = np.zeros(keys + 1, np.int64)
    for t in range(key.shape[0]):
        place[key[t] + 1] += 1
    place = np.cumsum(place)
    by_key = np.empty_like(order)
    for t in order:
        by_key[place[key[t]]] = t
        place[key[t]] += 1
    return by_key
