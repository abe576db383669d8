"""Paired differences: worked intervals, verdicts, and SciPy's paired t-test as oracle."""

import math

import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelab.bench.report.paired import paired_difference

SCORES = st.floats(1, 5, width=32)


def test_worked_interval():
    # differences −0.10 and −0.12: mean −0.11, s = 0.02/√2, s/√2 = 0.01, t(1) = tan(0.475·π) = 12.706
    difference = paired_difference({0: 2.40, 1: 2.41}, {0: 2.50, 1: 2.53})
    assert difference is not None
    assert difference.mean == pytest.approx(-0.11)
    assert difference.margin == pytest.approx(0.01 * math.tan(0.475 * math.pi))


def test_only_shared_seeds_count():
    difference = paired_difference({0: 2.0, 1: 9.0, 2: 2.2}, {0: 2.1, 2: 2.3, 3: 0.0})
    assert difference is not None
    assert difference.by_seed == pytest.approx({0: -0.1, 2: -0.1})
    assert paired_difference({0: 2.0}, {1: 2.0}) is None


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([-0.50, -0.51], "better"),  # −0.505 ± 12.7·0.005
        ([0.50, 0.51], "worse"),
        ([-0.50, 0.51], "open"),
        ([-0.9], "open"),  # one seed has no interval, however large the difference
        ([0.0, 0.0], "same"),
        ([0.0001, -0.0001], "same"),  # 0 ± 12.7·0.0001, inside ±0.01
        ([0.001, -0.001], "open"),  # 0 ± 12.7·0.001, not inside
    ],
)
def test_verdict(values, verdict):
    difference = paired_difference(dict(enumerate(values)), dict.fromkeys(range(len(values)), 0.0))
    assert difference is not None
    assert difference.verdict == verdict


@settings(deadline=None)  # other jobs share the cores
@given(st.lists(st.tuples(SCORES, SCORES), min_size=2, max_size=8))
def test_agrees_with_scipy(pairs):
    ours, other = zip(*pairs, strict=True)
    difference = paired_difference(dict(enumerate(ours)), dict(enumerate(other)))
    assert difference is not None
    mean = sum(a - b for a, b in pairs) / len(pairs)
    spread = scipy.stats.sem([a - b for a, b in pairs])
    low, high = (mean, mean) if spread == 0 else scipy.stats.t.interval(0.95, len(pairs) - 1, mean, spread)
    assert (difference.mean - difference.margin, difference.mean + difference.margin) == pytest.approx(
        (low, high), abs=1e-9
    )
