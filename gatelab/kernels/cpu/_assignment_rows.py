"""Balanced assignment in numba: what needs one row of scores at a time.

A score is *lifted*: `magic` = 1.5·2⁵² grid units is added and stays. That rounds it to the grid, makes it positive, and
puts it, less any price, into one binade: there float64 subtracts exactly and orders like its bits. Integer maxima
are vectorised without fast-math, which would break the exactness.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import njit

_SOURCES = sorted(Path(__file__).parent.glob("_assignment_*.py"))
_VERSION = hashlib.sha256(b"".join(source.read_bytes() for source in _SOURCES)).hexdigest()[:8]


def jit(function: Callable, **options: Any) -> Callable:
    """Compile at the first call, and keep the machine code on disk, under the version of all these files.

    Numba itself looks at the function's own file alone: after an upgrade it would run the old code of another file that
    was compiled into this one, or fail to read types that are gone.
    """
    function.__qualname__ += f"_{_VERSION}"
    try:
        return njit(function, cache=True, nogil=True, error_model="numpy", **options)
    except RuntimeError:  # nowhere to keep it: neither the package's directory nor the user's can be written
        return njit(function, nogil=True, error_model="numpy", **options)


def inner(function: Callable) -> Callable:
    """`jit` for what only compiled code calls and what allocates nothing.

    Without numba's reference counts: every array that is handed on costs two atomic operations, and a call hands on 20.
    """
    return jit(function, _nrt=False, no_cpython_wrapper=True)


ABSENT = 1e300  # the cost of a move no token can make; also tells −inf from a score
ROOM = 1 << 20  # one unit of room, in a number whose low bits name the expert
NO_ROOM = -(1 << 62)


class Scores(NamedTuple):
    values: np.ndarray  # (T, E)
    magic: float
    forbidden: float


@inner
def lifted(scores, t, e):
    x = np.float64(scores.values[t, e])
    return (x if x > -ABSENT else scores.forbidden) + scores.magic


@inner
def lift(scores, t, prices, row):
    """`row` (E,) becomes the lifted scores of token t, less the prices; returns the bits of the largest."""
    top = np.int64(0)
    for e in range(row.shape[0]):
        x = lifted(scores, t, e) - prices[e]
        row[e] = x
        top = max(top, np.float64(x).view(np.int64))
    return top


@inner
def largest(bits):
    top = bits[0]
    for e in range(bits.shape[0]):
        top = max(top, bits[e])
    return top


@inner
def largest_below(bits, top):
    found = np.int64(0)
    for e in range(bits.shape[0]):
        found = max(found, bits[e] if bits[e] < top else np.int64(0))
    return found


@inner
def roomiest(bits, top, room):
    """The expert with most room of those that reach `top`."""
    found = np.int64(NO_ROOM)
    for e in range(bits.shape[0]):
        found = max(found, room[e] if bits[e] == top else np.int64(NO_ROOM))
    return found & (ROOM - 1)


@jit
def choose(scores, k, prices, upper):
    """The top-k sets of `scores − prices` (T, k), the best first, and their loads (E,).

    Of tied experts, the one with most room under `upper` so far.
    """
    T, E = scores.values.shape
    ids, row = np.empty((T, k), np.int64), np.empty(E)
    bits = row.view(np.int64)
    room = ROOM * upper + np.arange(E)
    for t in range(T):
        top = lift(scores, t, prices, row)
        for c in range(k):
            if c > 0:
                top = largest(bits)
            e = roomiest(bits, top, room)
            ids[t, c] = e
            bits[e] = 0
            room[e] -= ROOM
    return ids, upper - room // ROOM


@jit
def not_top_k(scores, prices, ids):
    """Σ over tokens of how far, in grid units, an expert not held beats one held; an expert held twice counts one."""
    row = np.empty(prices.shape[0])
    bits = row.view(np.int64)
    total = 0
    for t in range(ids.shape[0]):
        top = worst = lift(scores, t, prices, row)
        for c in range(ids.shape[1]):
            e = ids[t, c]
            if bits[e] == 0:
                total += 1
            else:
                worst = min(worst, bits[e])
            bits[e] = 0
        if worst < top:  # else none not held can be better
            total += max(0, largest(bits) - worst)
    return total


@jit
def best_first(scores, prices, ids):
    """Sort every token's experts, in place."""
    values = np.empty(ids.shape[1])
    for t in range(ids.shape[0]):
        for c in range(ids.shape[1]):
            e = ids[t, c]
            value, x = lifted(scores, t, e) - prices[e], c
            while x > 0 and values[x - 1] < value:
                values[x], ids[t, x] = values[x - 1], ids[t, x - 1]
                x -= 1
            values[x], ids[t, x] = value, e
    return ids
