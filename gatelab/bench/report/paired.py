"""Is a difference between two routers more than noise?

Both were trained from the same seeds on the same batches, so what is judged is the mean of the differences seed by
seed, with its 95 % interval from Student's t: mean ± t · s/√n, n - 1 degrees of freedom. Two seeds make t = 12.7: an
interval from two seeds is wide because two seeds say little. Each interval stands alone; none is widened for the number
of comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

CONFIDENCE = 0.95
SAME_WITHIN = 0.01  # bits per byte: differences inside it are of no practical weight (0.7 % of perplexity per byte)

Verdict = Literal["better", "worse", "same", "open"]


@dataclass(frozen=True)
class Difference:
    """Bits per byte of a router minus those of another; negative = the router is better.

    Attributes:
        by_seed: the difference of each shared seed.
        mean: over the seeds.
        margin: half the width of the interval; infinite with a single seed.
    """

    by_seed: dict[int, float]
    mean: float
    margin: float

    @property
    def verdict(self) -> Verdict:
        """`better`, `worse`: the interval excludes 0. `same`: it lies inside ±SAME_WITHIN. `open`: neither."""
        if abs(self.mean) > self.margin:
            return "better" if self.mean < 0 else "worse"
        return "same" if abs(self.mean) + self.margin < SAME_WITHIN else "open"


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Difference | None:
    """Compare figures given by seed, on the seeds that both have; None where they share none."""
    by_seed = {seed: values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())}
    if not by_seed:
        return None
    differences = list(by_seed.values())
    n = len(differences)
    margin = math.inf if n == 1 else _student_t(n - 1) * stdev(differences) / math.sqrt(n)
    return Difference(by_seed, fmean(differences), margin)


def _student_t(degrees_of_freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, (1 + CONFIDENCE) / 2))
