"""Balanced assignment in numba: successive shortest paths over the E experts and the hub, which is node E."""

from typing import NamedTuple

import numpy as np

from gatelab.kernels.cpu._assignment_arcs import enter_all, know, know_all, know_near, move, no_arcs, resolve
from gatelab.kernels.cpu._assignment_hub import hub
from gatelab.kernels.cpu._assignment_rows import ABSENT, inner, jit


class Search(NamedTuple):
    """Scratch, all (E+1,)."""

    key: np.ndarray  # tentative distance; ABSENT once settled
    bits: np.ndarray  # the same memory: distances are >= 0, so they order like integers
    target: np.ndarray  # the price of a node that may still be entered, or ABSENT
    distance: np.ndarray
    parent: np.ndarray
    settled: np.ndarray
    cursor: np.ndarray
    path: np.ndarray


@jit
def new_search(nodes):
    key, numbers = np.empty(nodes), np.empty((4, nodes), np.int64)
    return Search(
        key, key.view(np.int64), np.empty(nodes), np.empty(nodes), numbers[0], numbers[1], numbers[2], numbers[3]
    )


@jit
def balance(scores, lower, upper, prices, ids, loads, near, window):
    """Turn the top-k sets `ids` of `scores − prices`, and their loads, into optimal ones; returns the prices (E,).

    `near` and its `window` (E,) spare a pass over the scores; `nothing_near()` where they are not known.
    """
    T, E = scores.values.shape
    graph = hub(lower, upper, ids.size, prices, loads)
    over = np.sum(np.maximum(graph.excess, 0))
    if over == 0:
        return prices
    # An expert that has tokens to give may take others for the hub first: its bound, and its excess on top.
    members, arcs = enter_all(ids, upper + np.maximum(graph.excess[:E], 0)), no_arcs(E, T)
    for e in range(E):
        _trade_with_hub(arcs, graph, e, 0)
    # With much to move, the second best spare long searches later. They pay where rows of scores come from afar.
    if near.held.shape[0] > 0:
        know_near(near, arcs, prices, window)
    elif 4 * over > E and (ids.shape[1] > 1 or T * E > 1 << 19):
        know_all(scores, members, arcs)
    search = new_search(E + 1)
    while over > 0:
        reached = _shortest_paths(scores, members, arcs, graph, search)
        moved = _augment(scores, members, arcs, graph, search, reached)
        if moved == 0:
            break  # the certificate will tell
        over -= moved
    return graph.price[:E]


@inner
def _trade_with_hub(arcs, graph, e, units):
    """The hub gets units of expert e: that costs nothing, as long as there is room."""
    H = graph.held.shape[0]
    if e < H:
        graph.held[e] += units
        arcs.cost[e, H] = 0.0 if graph.held[e] < graph.width[e] else ABSENT
        arcs.cost[H, e] = 0.0 if graph.held[e] > 0 else ABSENT


@inner
def _shortest_paths(scores, members, arcs, graph, search):
    """Dijkstra from all over-full nodes until all under-full ones are settled; lowers the prices by the distances.

    Returns:
        How many nodes `search.settled` lists, in order of distance.
    """
    price, excess, cost = graph.price, graph.excess, arcs.cost
    key, target, parent, distance, settled = search.key, search.target, search.parent, search.distance, search.settled
    lacking = 0
    for e in range(key.shape[0]):
        target[e] = price[e]
        key[e] = 0.0 if excess[e] > 0 else ABSENT
        parent[e] = -1
        lacking += excess[e] < 0
    done, reach = 0, 0.0
    while lacking > 0:
        u = _least(search.bits)
        if key[u] == ABSENT:
            break
        v = parent[u]
        if v >= 0 and arcs.token[v, u] < 0:
            # Only now does it matter what lies behind this bound. If more, another settled node may be nearer.
            resolve(scores, members, arcs, v, u)
            key[u] = ABSENT
            for x in range(done):
                v = settled[x]
                new = distance[v] - price[v] + cost[v, u] + price[u]
                if new < key[u]:
                    key[u], parent[u] = new, v
            continue
        reach = key[u]
        distance[u] = reach
        settled[done] = u
        done += 1
        lacking -= excess[u] < 0
        key[u] = ABSENT
        target[u] = 2 * ABSENT
        if not arcs.known[u]:
            know(scores, members, arcs, u)
        base = reach - price[u]
        for e in range(key.shape[0]):
            new, old = (base + cost[u, e]) + target[e], key[e]
            nearer = new < old
            key[e] = new if nearer else old
            parent[e] = u if nearer else parent[e]
    for x in range(done):
        u = settled[x]
        price[u] += reach - distance[u]  # all others: a distance of `reach` or more
    return done


@inner
def _least(bits):
    """The first index of the least."""
    low = bits[0]
    for e in range(bits.shape[0]):
        low = min(low, bits[e])
    start = 0
    while True:
        part = bits[start : start + 32]
        hits = 0
        for e in range(part.shape[0]):  # without a branch, so vectorised
            hits += part[e] == low
        if hits > 0:
            e = 0
            while part[e] != low:
                e += 1
            return start + e
        start += 32


@inner
def _augment(scores, members, arcs, graph, search, reached):
    """Move tokens along zero arcs from over-full to under-full nodes, found depth first; returns how many paths."""
    price, excess, path, target, cursor = graph.price, graph.excess, search.path, search.target, search.cursor
    H = price.shape[0] - 1
    cursor[:] = 0
    target[:] = ABSENT
    for x in range(reached):
        target[search.settled[x]] = price[search.settled[x]]
    moved = 0
    for x in range(reached):
        source = search.settled[x]
        while excess[source] > 0 and target[source] != ABSENT:
            path[0] = source
            target[source] = ABSENT  # on the path; stays so if it leads nowhere
            depth = 1
            while depth > 0 and excess[path[depth - 1]] >= 0:
                i = path[depth - 1]
                j = _first_sum(arcs.cost[i], target, price[i], cursor[i])
                cursor[i] = j
                if j > H:
                    depth -= 1
                elif arcs.token[i, j] < 0:
                    resolve(scores, members, arcs, i, j)
                else:
                    path[depth] = j
                    target[j] = ABSENT
                    depth += 1
            if depth == 0:
                break
            moved += 1
            excess[source] -= 1
            excess[path[depth - 1]] += 1
            target[path[depth - 1]] = price[path[depth - 1]]
            for y in range(depth - 2, -1, -1):  # from the far end, so that the earlier arcs stay tight
                i, j = path[y], path[y + 1]
                target[i] = price[i]
                if j == H:
                    _trade_with_hub(arcs, graph, i, 1)
                elif i == H:
                    _trade_with_hub(arcs, graph, j, -1)
                else:
                    move(scores, members, arcs, i, j)
    return moved


@inner
def _first_sum(a, b, total, j):
    """The first index from j on where a + b is `total`, or the length of a."""
    while j < a.shape[0]:
        x, y = a[j : j + 32], b[j : j + 32]
        hits = 0
        for e in range(x.shape[0]):  # without a branch, so vectorised
            hits += x[e] + y[e] == total
        if hits > 0:
            e = 0
            while x[e] + y[e] != total:
                e += 1
            return j + e
        j += 32
    return a.shape[0]
