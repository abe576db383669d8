"""Timing by turns, so that whatever else the machine does meets every contestant alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Call = Callable[[], object]


def alternate(calls: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round; every round makes all calls in turn, after one that is not counted."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """The median over the rounds of one time over another."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))
