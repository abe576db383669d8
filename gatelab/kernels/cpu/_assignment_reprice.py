"""Balanced assignment in numba: the sets after a change of prices, from the entries near their borders alone."""

import numpy as np

from gatelab.kernels.cpu._assignment_rows import inner, jit


@jit
def reprice(near, window, change, ids, loads):
    """Bring entries, windows, `ids` (T, k) and `loads` (E,) to prices that have changed, in place.

    Returns:
        False, and nothing is touched, if entries beyond the windows may matter.
    """
    most, least = np.max(change), np.min(change)
    # A border falls by `most` and rises by −`least` at the most; so near to it whatever is not listed may come.
    loss = np.maximum(most - change, change - least)
    if np.any(loss > window):
        return False
    window -= loss
    for x in range(near.start[-1]):
        near.value[x] -= change[near.expert[x]]
    for t in range(near.held.shape[0]):
        _exchange(near, t, ids[t], loads)
    return True


@inner
def _exchange(near, t, ids, loads):
    """Give token t to the best of its entries, as many as hold it."""
    begin, end = near.start[t], near.start[t + 1]
    border = begin + near.held[t]
    if begin == border or border == end:
        return
    while True:
        x, y = begin, border
        for z in range(begin, border):
            x = z if near.value[z] < near.value[x] else x
        for z in range(border, end):
            y = z if near.value[z] > near.value[y] else y
        if near.value[x] >= near.value[y]:
            return
        c = 0
        while ids[c] != near.expert[x]:
            c += 1
        ids[c] = near.expert[y]
        loads[near.expert[x]] -= 1
        loads[near.expert[y]] += 1
        near.expert[x], near.expert[y] = near.expert[y], near.expert[x]
        near.value[x], near.value[y] = near.value[y], near.value[x]
