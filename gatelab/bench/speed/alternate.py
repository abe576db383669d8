"""Timing by turns, so that whatever else the machine does meets every contestant alike."""

import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

Call = Callable[[], object]


def alternate(calls: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round; every round makes all calls in turn, after one that is not counted."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for name in turns(calls, rounds):
        start = time.perf_counter()
        calls[name]()
        seconds[name].append(time.perf_counter() - start)
    return seconds


def turns(names: Iterable[str], rounds: int) -> Iterator[str]:
    """Every name once a round, each round in an order of its own: who always came after the same contestant would
    always find the caches and the memory that it leaves behind.
    """
    order, drawn = list(names), random.Random(0)
    for _ in range(rounds):
        drawn.shuffle(order)
        yield from order


def median_ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """The median over the rounds of one time over another."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))
