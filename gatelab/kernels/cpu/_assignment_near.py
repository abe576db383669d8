"""Balanced assignment in numba: the experts near the border of a token's top-k set, all that small moves can change.

An expert's *margin* on a token is what its price may rise before it loses the token (≥ 0 where it holds it), or, less
than 0, what it must fall to win it. It is near if the margin is smaller than the expert's *window*.
"""

from typing import NamedTuple

import numpy as np

from gatelab.kernels.cpu._assignment_rows import ABSENT, ROOM, inner, jit, largest, largest_below, lift, roomiest

MEMBERS, NEAREST = 64, 24  # of that many members of an expert, so many are to be near


class Near(NamedTuple):
    """Token t has the entries `start[t] : start[t + 1]`, first those of the `held[t]` experts that hold it."""

    start: np.ndarray  # (T+1,)
    held: np.ndarray  # (T,)
    expert: np.ndarray
    value: np.ndarray  # lifted score less price
    worst: np.ndarray  # (T,): the least value among those that hold the token, or ABSENT if that is an entry
    rival: np.ndarray  # (T,): the largest of the others, or −ABSENT if that is an entry


@jit
def nothing_near():
    """No token has been looked at."""
    counts, values = np.zeros(1, np.int64), np.empty(0)
    return Near(counts, counts[:0], np.empty(0, np.int32), values, values, values)


@jit
def windows(scores, k, prices):
    """(E,): the margin of the NEAREST-th of MEMBERS members, on a sample."""
    T, E = scores.values.shape
    row, least = np.empty(E), np.full((E, NEAREST), ABSENT)
    bits = row.view(np.int64)
    ids, values = np.empty(k, np.int64), np.empty(k)
    for t in range(0, T, -(-T * k // (MEMBERS * E))):
        top = lift(scores, t, prices, row)
        for c in range(k):
            e = 0
            while bits[e] != top:
                e += 1
            ids[c], values[c] = e, row[e]
            bits[e] = 0
            top = largest(bits)
        rival = np.max(row)
        for c in range(k):
            _insert(least[ids[c]], values[c] - rival)
    found = least[:, -1].copy()
    known = found[found < ABSENT]
    return np.minimum(found, np.max(known)) if known.shape[0] > 0 else found


@inner
def _insert(least, new):
    """Keep the least, in order."""
    x = least.shape[0] - 1
    if new < least[x]:
        while x > 0 and least[x - 1] > new:
            least[x] = least[x - 1]
            x -= 1
        least[x] = new


@jit
def choose_near(scores, k, prices, upper, window):
    """What `choose` returns, and the entries near the border."""
    T, E = scores.values.shape
    ids, row, kept = np.empty((T, k), np.int64), np.empty(E), np.empty(E)
    bits, found = row.view(np.int64), np.empty(E + 1, np.int64)
    room = ROOM * upper + np.arange(E)
    start, held = np.empty(T + 1, np.int64), np.empty(T, np.int64)
    worst, rival = np.empty(T), np.empty(T)
    expert, value = np.empty(4 * k * T + E, np.int32), np.empty(4 * k * T + E)
    n = 0
    for t in range(T):
        start[t] = n
        if n + E > expert.shape[0]:
            expert, value = np.append(expert, np.empty_like(expert)), np.append(value, np.empty_like(value))
        last = lift(scores, t, prices, row)
        for _ in range(1, k):
            last = largest_below(bits, last)
        near = _reaching(row, window, last, found)
        if _sorted_down_to(row, bits, last, found[:near], ids[t]):
            for c in range(k):
                room[ids[t, c]] -= ROOM
            after = largest_below(bits, last)
        else:  # ties
            kept[:] = row
            for c in range(k):
                last = largest(bits)
                e = roomiest(bits, last, room)
                ids[t, c] = e
                bits[e] = 0
                room[e] -= ROOM
            after = largest(bits)
            row[:] = kept
            near = _reaching(row, window, last, found)
        low, high = np.int64(last).view(np.float64), np.int64(after).view(np.float64)
        worst[t], rival[t] = low, high
        for c in range(k):
            e = ids[t, c]
            if row[e] - high < window[e]:
                expert[n], value[n] = e, row[e]
                n += 1
                if c == k - 1:
                    worst[t] = ABSENT
            row[e] = -ABSENT
        held[t] = n - start[t]
        for x in range(near):
            e = found[x]
            if low - row[e] < window[e]:
                expert[n], value[n] = e, row[e]
                n += 1
                if row[e] == high:
                    rival[t] = -ABSENT
    start[T] = n
    return ids, upper - room // ROOM, Near(start, held, expert, value, worst, rival)


@inner
def _reaching(row, window, last, found):
    """List in `found` who is less than its window below `last`, or above it; returns how many."""
    low = np.int64(last).view(np.float64)
    n = 0
    for e in range(row.shape[0]):
        found[n] = e
        n += row[e] + window[e] >= low
    return n


@inner
def _sorted_down_to(row, bits, last, found, ids):
    """Fill ids (k,) with those of `found` that reach `last`, the best first; False if they are not k."""
    n = 0
    for x in range(found.shape[0]):
        e = found[x]
        if bits[e] >= last:
            if n == ids.shape[0]:
                return False
            y = n
            while y > 0 and row[ids[y - 1]] < row[e]:
                ids[y] = ids[y - 1]
                y -= 1
            ids[y] = e
            n += 1
    return n == ids.shape[0]
