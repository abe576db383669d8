"""Timing by turns on a GPU, against a limit that takes part, and where the figures come from."""

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gatelab.bench.speed.alternate import Call, alternate, median_ratio, turns
from gatelab.bench.speed.provenance import provenance

TOLERANCE = 0.02  # relative; bfloat16 rounds to 2⁻⁹ several times
Check = float | str


def race(
    facts: Mapping[str, Any],
    calls: Mapping[str, Call],
    checks: Mapping[str, Check],
    *,
    limit: str,
    work: float,
    rate: str,
    device: str,
    rounds: int,
    report: Callable[[dict], None],
) -> list[dict]:
    """One row per contestant.

    Args:
        facts: the columns that say what was measured.
        calls: by name, one of them the `limit`.
        checks: how far each is from the truth, or why there is nothing to compare with. Who is too far is not timed.
        limit: what the others are compared with.
        work: of one call, in the unit of `rate` times seconds.
        rate: the name of that column.
        device: `cuda`, timed by its own clock, or `cpu`.
        rounds: after one that is not counted.
        report: called with every row.

    Returns:
        The facts; `contestant`, `check`, `milliseconds`, the median over the rounds; the rate; `share`, the limit's
        time over this one, the median over the rounds; `machine`, `versions`, `commit`. Without a time where the check
        fails or memory does.
    """
    checks = dict(checks)
    able = {}
    for name, call in calls.items():
        if not passes(checks[name]):
            continue
        try:
            call()
            able[name] = call
        except torch.OutOfMemoryError:
            checks[name] = "out of memory"
    seconds = (alternate_by_events if device == "cuda" else alternate)(able, rounds)
    rows = []
    for name in calls:
        times = seconds.get(name)
        median = statistics.median(times) if times else None
        row = {
            **facts,
            "contestant": name,
            "check": checks[name],
            "milliseconds": median and 1e3 * median,
            rate: median and work / median,
            "share": median_ratio(seconds[limit], times) if times else None,
            **whence(device),
        }
        report(row)
        rows.append(row)
    return rows


def alternate_by_events(calls: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
    """As `alternate`, by the GPU's clock, which does not count how long Python takes as long as the GPU has work."""
    events: dict[str, list[Any]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for name in turns(calls, rounds):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        calls[name]()
        stop.record()
        events[name].append((start, stop))
    torch.cuda.synchronize()
    return {name: [start.elapsed_time(stop) / 1e3 for start, stop in pairs] for name, pairs in events.items()}


def passes(check: Check) -> bool:
    """Whether a contestant may be timed; NaN may not."""
    return isinstance(check, str) or check < TOLERANCE


def distance(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest distance, each relative to what is expected; NaN where anything is. Of integers 0 or infinite."""
    errors = [_distance(a, e) for a, e in zip(actual, expected, strict=True)]
    return max(errors) if all(error == error for error in errors) else float("nan")


def _distance(actual: Tensor, expected: Tensor) -> float:
    if not expected.is_floating_point():
        return 0.0 if torch.equal(actual, expected) else float("inf")
    difference, norm = actual - expected, torch.linalg.vector_norm
    return float(norm(difference, dtype=torch.float32) / norm(expected, dtype=torch.float32))


@functools.cache
def whence(device: str) -> dict[str, str]:
    """As `provenance`, with the GPU and Triton."""
    if device != "cuda":
        return provenance()
    from triton import __version__ as triton

    where = provenance()
    name = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    return {**where, "machine": name, "versions": f"{where['versions']}, triton {triton}"}
