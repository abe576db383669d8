"""Balanced assignment in numba: near prices, by sweeps over the experts.

With the borders of the tokens' sets fixed, the dual splits by expert: the price at which an expert keeps as many tokens
as it shall is a quantile of its margins. All experts at once, then new borders: block coordinate descent on the dual
(quantile balancing), but on what is near only, so that a sweep needs no pass over the scores.
"""

import numpy as np

from gatelab.kernels.cpu._assignment_rows import inner, jit

SWEEPS = 3
HALVINGS = 24


@jit
def sweep(near, magic, prices, window, loads, lower, upper, hub_price):
    """What to add to the prices (E,), and which share of what was out of bounds the last sweep but one has left."""
    E, T = prices.shape[0], near.held.shape[0]
    far, size, longest = loads.copy(), np.zeros(E, np.int64), 0
    for t in range(T):
        longest = max(longest, near.start[t + 1] - near.start[t])
        for x in range(near.start[t], near.start[t + 1]):
            size[near.expert[x]] += 1
            far[near.expert[x]] -= x < near.start[t] + near.held[t]
    first = np.cumsum(size) - size
    margins, value, order = np.empty(near.start[T]), np.empty(longest), np.empty(longest, np.int64)
    change = np.zeros(E)
    before = out = 0
    for n in range(SWEEPS):
        _measure(near, change, first, size, margins, value, order)
        out = 0
        for e in range(E):
            own = margins[first[e] : first[e] + size[e]]
            load = far[e] + _above(own, 0.0)
            out += max(0, load - upper[e], lower[e] - load)
            shift = _quantile(own, lower[e] - far[e], upper[e] - far[e], hub_price - prices[e] - change[e])
            change[e] = min(max(change[e] + shift, -window[e]), window[e])  # farther is not known
            change[e] = (change[e] + magic) - magic
        if n == 0:
            before = max(1, out)
    fits = np.max(np.abs(prices + change)) < magic / 12  # 2⁴⁹ units: arithmetic stays exact
    return (change, out / before) if fits else (np.zeros(E), 1.0)


@inner
def _measure(near, change, first, size, margins, value, order):
    """Every expert's margins, after its price has changed."""
    size[:] = 0
    for t in range(near.held.shape[0]):
        begin, end = near.start[t], near.start[t + 1]
        border = begin + near.held[t]
        worst, rival = near.worst[t], near.rival[t]
        for x in range(begin, border):
            worst = min(worst, near.value[x] - change[near.expert[x]])
        for x in range(border, end):
            rival = max(rival, near.value[x] - change[near.expert[x]])
        if worst >= rival:
            for x in range(begin, end):
                e = near.expert[x]
                margins[first[e] + size[e]] = (near.value[x] - change[e]) - (rival if x < border else worst)
                size[e] += 1
        else:
            _change_hands(near, t, change, first, size, margins, value, order)


@inner
def _change_hands(near, t, change, first, size, margins, value, order):
    """The same for a token whose set changes: as many of its entries hold it as before, but the best now."""
    begin, n, held = near.start[t], near.start[t + 1] - near.start[t], near.held[t]
    for x in range(n):
        new = near.value[begin + x] - change[near.expert[begin + x]]
        y = x
        while y > 0 and value[y - 1] < new:
            value[y], order[y] = value[y - 1], order[y - 1]
            y -= 1
        value[y], order[y] = new, begin + x
    worst = min(near.worst[t], value[held - 1]) if held > 0 else near.worst[t]
    rival = max(near.rival[t], value[held]) if held < n else near.rival[t]
    for x in range(n):
        e = near.expert[order[x]]
        margins[first[e] + size[e]] = value[x] - (rival if x < held else worst)
        size[e] += 1


@inner
def _above(margins, least):
    count = 0
    for x in range(margins.shape[0]):
        count += margins[x] > least
    return count


@inner
def _quantile(margins, lower, upper, to_hub):
    """What to add to a price so that `lower` to `upper` margins stay positive; the hub's price, if it does that."""
    want, low, high = upper, 0.0, 0.0
    if lower < upper:
        count = _above(margins, to_hub)
        if lower <= count <= upper:
            return to_hub
        want = lower if count < lower else upper
    for x in range(margins.shape[0]):
        low, high = min(low, margins[x]), max(high, margins[x])
    if _above(margins, 0.0) > want:
        low = 0.0
    else:
        high = 0.0
    middle = 0.0
    for _ in range(HALVINGS):  # vectorised, which selecting an order statistic is not
        count = _above(margins, middle)
        if count == want:
            break
        low, high = (middle, high) if count > want else (low, middle)
        middle = 0.5 * (low + high)
    return middle
