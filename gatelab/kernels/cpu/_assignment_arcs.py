"""Balanced assignment in numba: the cheapest move from every expert to every other, kept up to date.

Arc i→j stands for the tokens on i and not on j; its cost is the least q_ti − q_tj among them. The two best tokens are
known, or only a lower bound: withdrawing a token can only raise a minimum.
"""

from typing import NamedTuple

import numpy as np

from gatelab.kernels.cpu._assignment_rows import ABSENT, inner, jit, lift, lifted


class Members(NamedTuple):
    """Who is where. The tokens of expert e are `tokens[start[e] : start[e] + load[e]]`, in any order."""

    ids: np.ndarray  # (T, k)
    slot: np.ndarray  # (T, k): where in `tokens` that entry is
    tokens: np.ndarray
    start: np.ndarray
    load: np.ndarray


class Arcs(NamedTuple):
    """All (E+1, E+1): node E is the hub, its arcs are not touched here.

    `token` −1: unknown, then `cost` is a lower bound. No token can move: `cost` ABSENT.
    """

    cost: np.ndarray
    token: np.ndarray
    next_cost: np.ndarray  # no other token is cheaper
    next_token: np.ndarray
    known: np.ndarray  # (E+1,): the arcs of this node are kept
    row: np.ndarray  # scratch (E,)
    zero: np.ndarray  # (E,): no prices


@jit
def enter_all(ids, room):
    """The members of E experts, with space for `room` (E,) of them."""
    start = np.cumsum(room) - room
    tokens = np.empty(np.sum(room), np.int32)
    members = Members(ids, np.empty_like(ids), tokens, start, np.zeros_like(start))
    for t in range(ids.shape[0]):
        for c in range(ids.shape[1]):
            _enter(members, t, c, ids[t, c])
    return members


@jit
def no_arcs(E, T):
    """No expert's moves are known."""
    arcs = Arcs(
        np.full((E + 1, E + 1), ABSENT),
        np.full((E + 1, E + 1), np.int32(-1)),
        np.full((E + 1, E + 1), ABSENT),
        np.full((E + 1, E + 1), np.int32(-1)),
        np.zeros(E + 1, np.bool_),
        np.empty(E),
        np.zeros(E),
    )
    arcs.known[E] = True
    arcs.token[E, :] = arcs.token[:, E] = T  # hub arcs are always known
    return arcs


@inner
def know(scores, members, arcs, i):
    """Find the cheapest move from expert i to every other."""
    arcs.known[i] = True
    row, cost, token = arcs.row, arcs.cost[i], arcs.token[i]
    for slot in range(members.start[i], members.start[i] + members.load[i]):
        t = members.tokens[slot]
        _lift_others(scores, members, arcs, t)
        own = lifted(scores, t, i)
        for j in range(row.shape[0]):
            new, w, g = own - row[j], cost[j], token[j]
            cost[j] = new if new < w else w
            token[j] = t if new < w else g
    for j in range(row.shape[0]):
        arcs.next_cost[i, j] = cost[j]


@inner
def know_all(scores, members, arcs):
    """Find the two cheapest moves from every expert to every other, reading each row of scores once."""
    arcs.known[:] = True
    for t in range(members.ids.shape[0]):
        _lift_others(scores, members, arcs, t)
        for c in range(members.ids.shape[1]):
            i = members.ids[t, c]
            _offer_to_all(arcs, i, t, lifted(scores, t, i))


@inner
def know_near(near, arcs, prices, window):
    """Find the moves that cost less than the windows of both experts; of all others that is the bound.

    Whatever a token loses by a move is at least its margin on the one expert, and on the other.
    """
    arcs.known[:] = True
    E = prices.shape[0]
    for i in range(E):
        for j in range(E):
            if i != j:
                arcs.cost[i, j] = arcs.next_cost[i, j] = min(window[i], window[j]) + (prices[i] - prices[j])
    for t in range(near.held.shape[0]):
        border = near.start[t] + near.held[t]
        for x in range(near.start[t], border):
            i = near.expert[x]
            for y in range(border, near.start[t + 1]):
                j = near.expert[y]
                _offer(arcs, i, j, t, (near.value[x] - near.value[y]) + (prices[i] - prices[j]))


@inner
def move(scores, members, arcs, i, j):
    """The cheapest token of arc i→j leaves i and goes to j."""
    t, row = arcs.token[i, j], arcs.row
    c = _choice(members.ids, t, i)
    _leave(members, t, c)
    _enter(members, t, c, j)
    lift(scores, t, arcs.zero, row)
    _withdraw_from_all(arcs, i, t)
    for c in range(members.ids.shape[1]):
        e = members.ids[t, c]
        if e != j and arcs.known[e]:
            _withdraw(arcs, e, j, t)
            _offer(arcs, e, i, t, row[e] - row[i])
    if arcs.known[j]:
        _lift_others(scores, members, arcs, t)
        _offer_to_all(arcs, j, t, lifted(scores, t, j))


@inner
def resolve(scores, members, arcs, i, j):
    """Find the two best tokens of an arc of which only a bound was known."""
    bound = arcs.cost[i, j]
    w, f, g, x = ABSENT, ABSENT, np.int32(-1), np.int32(-1)
    for slot in range(members.start[i], members.start[i] + members.load[i]):
        t = members.tokens[slot]
        new = lifted(scores, t, i) - lifted(scores, t, j)
        if new < f and _choice(members.ids, t, j) < 0:
            if new < w:
                w, f, g, x = new, w, t, g
            else:
                f, x = new, t
            if f == bound:
                break  # both are as good as any token can be
    arcs.cost[i, j], arcs.token[i, j] = w, g
    arcs.next_cost[i, j], arcs.next_token[i, j] = f, x


@inner
def _choice(ids, t, e):
    """Which of its choices expert e is to token t; −1 = none."""
    for c in range(ids.shape[1]):
        if ids[t, c] == e:
            return c
    return -1


@inner
def _enter(members, t, c, e):
    slot = members.start[e] + members.load[e]
    members.load[e] += 1
    members.ids[t, c] = e
    members.slot[t, c] = slot
    members.tokens[slot] = t


@inner
def _leave(members, t, c):
    e, slot = members.ids[t, c], members.slot[t, c]
    members.load[e] -= 1
    last = members.tokens[members.start[e] + members.load[e]]
    members.tokens[slot] = last
    members.slot[last, _choice(members.ids, last, e)] = slot


@inner
def _lift_others(scores, members, arcs, t):
    """`arcs.row` becomes the lifted scores of token t, and −ABSENT where it is."""
    lift(scores, t, arcs.zero, arcs.row)
    for c in range(members.ids.shape[1]):
        arcs.row[members.ids[t, c]] = -ABSENT


@inner
def _offer_to_all(arcs, i, t, own):
    """Token t, worth `own` on i, is a candidate for every arc i→j, except where `row` is −ABSENT."""
    row = arcs.row
    cost, token, next_cost, next_token = arcs.cost[i], arcs.token[i], arcs.next_cost[i], arcs.next_token[i]
    better = 0
    for j in range(row.shape[0]):
        better += own - row[j] < next_cost[j]
    if better == 0:  # the common case, and it reads only one of the four tables
        return
    t = np.int32(t)
    for j in range(row.shape[0]):
        new, w, g, f, x = own - row[j], cost[j], token[j], next_cost[j], next_token[j]
        first, second = new < w, new < f
        cost[j] = new if first else w
        token[j] = t if first else g
        f = new if second else f
        x = t if second else x
        next_cost[j] = w if first else f
        next_token[j] = g if first else x


@inner
def _offer(arcs, i, j, t, new):
    if new < arcs.cost[i, j]:
        arcs.next_cost[i, j], arcs.next_token[i, j] = arcs.cost[i, j], arcs.token[i, j]
        arcs.cost[i, j], arcs.token[i, j] = new, t
    elif new < arcs.next_cost[i, j]:
        arcs.next_cost[i, j], arcs.next_token[i, j] = new, t


@inner
def _withdraw_from_all(arcs, i, t):
    """Token t has left i."""
    cost, token, next_cost, next_token = arcs.cost[i], arcs.token[i], arcs.next_cost[i], arcs.next_token[i]
    none = np.int32(-1)
    for j in range(arcs.row.shape[0]):
        w, g, f, x = cost[j], token[j], next_cost[j], next_token[j]
        gone = g == t
        x = none if x == t else x
        cost[j] = f if gone else w
        token[j] = x if gone else g
        next_token[j] = none if gone else x


@inner
def _withdraw(arcs, i, j, t):
    if arcs.next_token[i, j] == t:
        arcs.next_token[i, j] = -1
    if arcs.token[i, j] == t:
        arcs.cost[i, j], arcs.token[i, j] = arcs.next_cost[i, j], arcs.next_token[i, j]
        arcs.next_token[i, j] = -1
