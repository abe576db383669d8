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
    """What `choose` returns, but for the order of a token's experts, and the entries near the border."""
    T, E = scores.values.shape
    ids, room = np.empty((T, k), np.int64), ROOM * upper + np.arange(E)
    start, held, worst, rival = np.zeros(T + 1, np.int64), np.empty(T, np.int64), np.empty(T), np.empty(T)
    near = Near(start, held, np.empty(4 * k * T + E, np.int32), np.empty(4 * k * T + E), worst, rival)
    row, places, mine = np.empty(E), np.empty((2, E + 1), np.int64), np.zeros(E, np.bool_)
    bits, found, own = row.view(np.int64), places[0], places[1]
    t = 0
    while t < T:
        t = _choose_while_space(scores, t, prices, window, ids, room, near, row, bits, found, own, mine)
        if t < T:
            expert, value = np.append(near.expert, near.expert), np.append(near.value, near.value)
            near = Near(start, held, expert, value, worst, rival)
    return ids, upper - room // ROOM, near


@inner
def _choose_while_space(scores, t, prices, window, ids, room, near, row, bits, found, own, mine):
    """From token t on; returns the first for which there is no space left. The arrays at the end are scratch."""
    k, E = ids.shape[1], row.shape[0]
    expert, value, n = near.expert, near.value, near.start[t]
    while t < ids.shape[0] and n + E < expert.shape[0]:
        last = lift(scores, t, prices, row)
        for _ in range(1, k):
            last = largest_below(bits, last)
        listed = _reaching(row, window, last, found)
        if _reached(bits, last, found[:listed], mine, own) == k:
            after = largest_below(bits, last)
            for c in range(k):
                ids[t, c] = own[c]
                room[own[c]] -= ROOM
        else:  # ties
            last, after = _roomiest_first(bits, room, ids[t])
            lift(scores, t, prices, row)
            listed = _reaching(row, window, last, found)
            for x in range(listed):
                mine[found[x]] = False
            for c in range(k):
                mine[ids[t, c]] = True
        low, high = np.int64(last).view(np.float64), np.int64(after).view(np.float64)
        worst, rival = low, high
        for x in range(listed):  # without branches: who is near is hard to foretell
            e = found[x]
            is_near = mine[e] & (row[e] - high < window[e])
            expert[n], value[n] = e, row[e]
            n += is_near
            worst = ABSENT if is_near & (row[e] == low) else worst
        near.held[t] = n - near.start[t]
        for x in range(listed):
            e = found[x]
            is_near = (not mine[e]) & (low - row[e] < window[e])
            expert[n], value[n] = e, row[e]
            n += is_near
            rival = -ABSENT if is_near & (row[e] == high) else rival
        near.worst[t], near.rival[t] = worst, rival
        t += 1
        near.start[t] = n
    return t


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
def _reached(bits, last, found, mine, own):
    """Mark those of `found` that reach `last` as `mine` (E,) and list them; returns how many."""
    n = 0
    for x in range(found.shape[0]):
        e = found[x]
        mine[e] = bits[e] >= last
        own[n] = e
        n += mine[e]
    return n


@inner
def _roomiest_first(bits, room, ids):
    """Move a top-k set from `bits` to ids (k,), of tied experts the roomiest; returns its least and the next."""
    last = np.int64(0)
    for c in range(ids.shape[0]):
        last = largest(bits)
        e = roomiest(bits, last, room)
        ids[c] = e
        bits[e] = 0
        room[e] -= ROOM
    return last, largest(bits)
