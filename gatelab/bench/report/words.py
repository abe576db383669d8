"""Numbers as a reader meets them. A figure that is absent is a dash."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from gatelab.bench.report.paired import SAME_WITHIN, Difference

ABSENT = "–"
VERDICTS = {"better": "better", "worse": "worse", "same": f"same within {SAME_WITHIN:g}", "open": "open"}


def number(value: float, digits: int = 3, unit: str = "") -> str:
    """Fixed decimals, with the unit behind a space."""
    return f"{value:,.{digits}f}{' ' if unit else ''}{unit}".replace("-", "−") if math.isfinite(value) else ABSENT


def signed(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def percent(share: float) -> str:
    """Two figures below ten per cent, so that a cheap router is not 0 %."""
    return number(100 * share, 2 if share < 0.1 else 1, "%")


def count(n: int, noun: str) -> str:
    """1 seed, 2 seeds."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def listing(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def cell_list(cells: Mapping[str, Sequence[int]]) -> str:
    """a (seeds 0 and 1), b (seed 1)."""
    return ", ".join(
        f"{name} (seed{'' if len(seeds) == 1 else 's'} {listing([str(s) for s in seeds])})"
        for name, seeds in cells.items()
    )


def interval(difference: Difference) -> str:
    """Mean ± margin, kept on one line."""
    if math.isinf(difference.margin):
        return f"{signed(difference.mean)}, no interval"
    return f"{signed(difference.mean)}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{difference.margin:.3f}"


def size(num_bytes: int) -> str:
    """Bytes with a decimal prefix."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.3g} {unit}"
    return f"{num_bytes} B"


def quantity(value: float, unit: str = "") -> str:
    """Three figures with a metric prefix: 1.23 MFLOP, 4.5 ms."""
    if not math.isfinite(value):
        return ABSENT
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}".strip()
    return f"{value:.3g} {unit}".strip()
