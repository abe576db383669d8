"""Balanced assignment in numba: the node that carries the slack of the bounds."""

from typing import NamedTuple

import numpy as np

from gatelab.kernels.cpu._assignment_rows import jit


class Graph(NamedTuple):
    """The E experts and the hub, the last node. `price` and `excess` are (E+1,), the others (E,)."""

    price: np.ndarray
    excess: np.ndarray  # tokens over (+) or under (−) what the node is to hold
    held: np.ndarray  # the hub's units on an expert: its tokens above the lower bound
    width: np.ndarray  # and how many there may be


@jit
def hub(lower, upper, total, prices, loads):
    """The hub that goes with prices and loads.

    An expert's tokens above its lower bound count as the hub's. Expert e and the hub trade them freely, so at the
    optimum an expert dearer than the hub has all of its `upper − lower`, a cheaper one has none.
    """
    E = prices.shape[0]
    width, held, excess = upper - lower, np.zeros(E, np.int64), np.zeros(E + 1, np.int64)
    price = np.append(prices, 0.0)
    excess[:E] = loads - lower
    rest = total - np.sum(lower)
    if np.any(width > 0):
        room = 0
        for e in np.argsort(-prices, kind="mergesort"):
            price[E] = prices[e]
            room += width[e]
            if room >= rest:
                break
        for e in range(E):
            if prices[e] > price[E]:
                held[e] = width[e]
            elif prices[e] == price[E]:
                held[e] = min(max(excess[e], 0), width[e])
            excess[e] -= held[e]
    excess[E] = np.sum(held) - rest
    return Graph(price, excess, held, width)
