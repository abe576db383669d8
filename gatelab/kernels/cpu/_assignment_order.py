"""Balanced assignment in numba: an order of the tokens in which every stride-th of them stands for all.

Tokens change hands at the border of their sets, between the k-th expert and the next. Those with the same pair lie on
a line there, so a systematic sample along it has the same loads as all tokens, up to one token a border, at these
prices and at near ones; a random sample errs by the square root of what moved. Systematic sampling of ordered units:
Cochran, Sampling Techniques (1977), chapter 8.
"""

import numpy as np

from gatelab.kernels.cpu._assignment_rows import inner, jit, largest_below, lift

BINS = 1024  # of gaps


@jit
def line_up(scores, k, prices):
    """The tokens (T,) ordered by their k-th expert at these prices, the next one, and how far that is behind."""
    T, E = scores.values.shape
    row, last, after, gap = np.empty(E), np.empty(T, np.int64), np.empty(T, np.int64), np.empty(T)
    bits = row.view(np.int64)
    for t in range(T):
        top = lift(scores, t, prices, row)
        for _ in range(1, k):
            top = max(largest_below(bits, top), np.int64(1))
        next_top = largest_below(bits, top)
        last[t], after[t] = _position(bits, top), _position(bits, next_top)
        gap[t] = max(row[last[t]] - row[after[t]], 0.0)
    middle = max(np.mean(gap), 1e-300)
    bins = (BINS * (gap / (gap + middle))).astype(np.int64)
    order = _sorted(np.arange(T), bins, BINS + 1)
    return _sorted(_sorted(order, after, E), last, E)


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
