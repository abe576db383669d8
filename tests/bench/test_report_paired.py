"""Paired differences: worked intervals, verdicts, and SciPy and the textbook's two-way layout as oracles."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelab.bench.report.paired import Noise, estimate_noise, paired_difference

UNTIMED = settings(deadline=None)  # other jobs share the cores, a deadline would fail at random
SCORES = st.floats(1, 5, width=32)


def test_worked_interval():
    # differences −0.10 and −0.12: mean −0.11. Half their distance from it, ±0.005, is what is left over in each cell:
    # σ² = 4 · 0.005²/1, so σ = 0.01; t(1) = tan(0.475·π) = 12.706, and √(2/2) = 1
    a, b = {0: 2.40, 1: 2.41}, {0: 2.50, 1: 2.53}
    noise = estimate_noise({"a": a, "b": b})
    assert (noise.deviation, noise.degrees_of_freedom) == (pytest.approx(0.01), 1)
    difference = paired_difference(a, b, noise)
    assert difference is not None
    assert difference.mean == pytest.approx(-0.11)
    assert difference.margin == pytest.approx(0.01 * math.tan(0.475 * math.pi))


def test_a_seed_that_is_hard_for_all_is_no_noise():
    noise = estimate_noise({"a": {0: 2.0, 1: 7.0, 2: 3.0}, "b": {0: 2.5, 1: 7.5, 2: 3.5}, "c": {1: 7.25}})
    assert noise.deviation == pytest.approx(0, abs=1e-12)
    assert noise.degrees_of_freedom == 7 - 3 - 3 + 1


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"a": {}},
        {"a": {0: 2.0}, "b": {0: 3.0}, "c": {0: 4.0}},  # one seed
        {"a": {0: 2.0, 1: 3.0}},  # one router
        {"a": {0: 2.0, 1: 3.0}, "b": {0: 2.0}},  # half a run
        {"a": {0: 2.0}, "b": {1: 3.0}},  # nothing in common
    ],
)
def test_unknown_noise_gives_no_interval(values):
    noise = estimate_noise(values)
    assert noise.degrees_of_freedom == 0
    assert math.isinf(noise.margin(1))


def test_only_shared_seeds_count():
    difference = paired_difference({0: 2.0, 1: 9.0, 2: 2.2}, {0: 2.1, 2: 2.3, 3: 0.0}, Noise(0.0, 3))
    assert difference is not None
    assert difference.by_seed == pytest.approx({0: -0.1, 2: -0.1})
    assert paired_difference({0: 2.0}, {1: 2.0}, Noise(0.0, 3)) is None


@pytest.mark.parametrize(
    ("difference", "deviation", "verdict"),
    [
        (-0.50, 0.03, "better"),  # −0.5 ± 12.7·0.03
        (0.50, 0.03, "worse"),
        (-0.50, 0.04, "open"),  # −0.5 ± 12.7·0.04
        (0.0, 0.0, "same"),
        (0.001, 0.0007, "same"),  # 0.001 ± 12.7·0.0007, inside ±0.01
        (0.002, 0.0007, "open"),  # 0.002 ± 0.0089, not inside
    ],
)
def test_verdict(difference, deviation, verdict):
    found = paired_difference({0: difference, 1: difference}, {0: 0.0, 1: 0.0}, Noise(deviation, 1))
    assert found is not None
    assert found.verdict == verdict


def test_one_of_several_comparisons_has_a_wider_interval():
    # Of 5 at once, each at 1 − 0.05/5 = 99 %: t(1) = tan(0.495·π) = 63.7 in place of tan(0.475·π) = 12.7
    noise = Noise(0.01, 1)
    assert noise.margin(2, comparisons=5) == pytest.approx(0.01 * math.tan(0.495 * math.pi))
    found = paired_difference({0: 0.5, 1: 0.5}, {0: 0.0, 1: 0.0}, noise, comparisons=5)
    assert found is not None
    assert (found.verdict, noise.margin(2)) == ("open", pytest.approx(0.01 * math.tan(0.475 * math.pi)))


def test_without_an_interval_nothing_is_decided():
    found = paired_difference({0: 1.0}, {0: 9.0}, Noise(0.0, 0))
    assert found is not None
    assert found.verdict == "open"


@UNTIMED
@given(st.lists(st.tuples(SCORES, SCORES), min_size=2, max_size=8))
def test_two_routers_are_the_paired_t_test(pairs):
    a, b = (dict(enumerate(found)) for found in zip(*pairs, strict=True))
    difference = paired_difference(a, b, estimate_noise({"a": a, "b": b}))
    assert difference is not None
    gaps = [x - y for x, y in pairs]
    quantile = scipy.stats.t.ppf(0.975, len(pairs) - 1)
    assert difference.mean == pytest.approx(np.mean(gaps), abs=1e-9)
    assert difference.margin == pytest.approx(quantile * scipy.stats.sem(gaps), abs=1e-9)


@UNTIMED
@given(st.integers(2, 6), st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_full_table_is_the_two_way_layout(routers, seeds, draw):
    y = np.random.default_rng(draw).normal(size=(routers, seeds))
    left_over = y - y.mean(0) - y.mean(1, keepdims=True) + y.mean()
    freedom = (routers - 1) * (seeds - 1)
    noise = estimate_noise({router: dict(enumerate(row)) for router, row in enumerate(y)})
    assert noise.degrees_of_freedom == freedom
    assert noise.deviation == pytest.approx(math.sqrt((left_over**2).sum() / freedom))
