"""Is a difference between two routers more than noise?

All routers are trained from the same seeds on the same batches, and a seed that is hard for one is hard for all. So a
figure is taken as router + seed + noise, the noise estimated from what the first two leave over in all cells together
(the two-way layout of a randomised block experiment), and a difference is judged seed by seed:

    mean ± t · σ · √(2/n)   with n seeds in common, t of Student at 95 %, cells - routers - seeds + 1 degrees of freedom

For two routers this is the paired t-test. With more it assumes that all are equally noisy; in return two seeds of eight
routers give 7 degrees of freedom (t = 2.4) in place of 1 (t = 12.7).

An interval stands alone, as in a table, or it is one of several that shall all hold at once with 95 %, as in a
sentence about many gates: then each is taken at 1 - 5 %/comparisons (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import numpy as np

CONFIDENCE = 0.95
SAME_WITHIN = 0.01  # bits per byte: differences inside it are of no practical weight (0.7 % of perplexity per byte)

Verdict = Literal["better", "worse", "same", "open"]


@dataclass(frozen=True)
class Noise:
    """Standard deviation of one cell around router + seed, and on how many degrees of freedom it rests (0: unknown)."""

    deviation: float
    degrees_of_freedom: int

    def margin(self, num_seeds: int, comparisons: int = 1) -> float:
        """Half the width of the interval of a difference, one of so many; infinite where the noise is unknown."""
        if self.degrees_of_freedom == 0:
            return math.inf
        from scipy.special import stdtrit

        quantile = float(stdtrit(self.degrees_of_freedom, 1 - (1 - CONFIDENCE) / comparisons / 2))
        return quantile * self.deviation * math.sqrt(2 / num_seeds)


@dataclass(frozen=True)
class Difference:
    """Bits per byte of a router minus those of another; negative = the router is better.

    Attributes:
        by_seed: the difference of each shared seed.
        mean: over the seeds.
        margin: half the width of the interval; infinite where the noise is unknown.
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


def estimate_noise(values: Mapping[Any, Mapping[Any, float]]) -> Noise:
    """From the figures of every router, by seed; seeds may be missing here and there."""
    routers = [name for name, found in values.items() if found]
    seeds = list({seed: None for found in values.values() for seed in found})
    cells = [(routers.index(name), seeds.index(seed), y) for name in routers for seed, y in values[name].items()]
    if not cells:
        return Noise(0.0, 0)
    router, seed, figures = map(np.array, zip(*cells, strict=True))
    design = np.hstack([np.eye(len(routers))[router], np.eye(len(seeds))[seed]])
    solution, _, rank, _ = np.linalg.lstsq(design, figures, rcond=None)
    left_over, degrees_of_freedom = figures - design @ solution, len(cells) - int(rank)
    return Noise(math.sqrt(left_over @ left_over / max(1, degrees_of_freedom)), degrees_of_freedom)


def paired_difference(
    values: Mapping[int, float], reference: Mapping[int, float], noise: Noise, comparisons: int = 1
) -> Difference | None:
    """Compare figures given by seed, on the seeds that both have; None where they share none.

    Args:
        values: of the router.
        reference: of the other.
        noise: of one cell.
        comparisons: of how many this is one, all of which shall hold at once.
    """
    by_seed = {seed: values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())}
    if not by_seed:
        return None
    return Difference(by_seed, fmean(by_seed.values()), noise.margin(len(by_seed), comparisons))
