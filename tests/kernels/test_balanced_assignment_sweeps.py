"""The prices that the compiled solver starts from: any would do, so only here does it show that they are near."""

import numpy as np
import pytest

from gatelab.kernels.cpu._assignment_near import choose_near, windows
from gatelab.kernels.cpu._assignment_rows import Scores, choose
from gatelab.kernels.cpu._assignment_sweeps import sweep

UNIT = 2.0**-40


def on_grid(values):
    values = np.rint(np.asarray(values, np.float64) / UNIT) * UNIT
    return Scores(values, 1.5 * 2.0**52 * UNIT, -np.inf)


@pytest.mark.parametrize("ties", [False, True])
def test_near_entries_are_those_within_the_window(ties):
    rng = np.random.default_rng(0)
    T, E, k = 200, 12, 3
    values = rng.integers(0, 5, (T, E)) if ties else rng.standard_normal((T, E))
    scores, prices, upper = on_grid(values), np.zeros(E), np.full(E, k * T // E)
    window = windows(scores, k, prices)
    ids, loads, near = choose_near(scores, k, prices, upper, window)
    expected = choose(scores, k, prices, upper)
    assert np.array_equal(np.sort(ids), np.sort(expected[0]))
    assert np.array_equal(loads, expected[1])
    for t in range(T):
        held = np.isin(np.arange(E), ids[t])
        rival, worst = scores.values[t, ~held].max(), scores.values[t, held].min()
        margin = np.where(held, scores.values[t] - rival, worst - scores.values[t])
        entries = near.expert[near.start[t] : near.start[t + 1]]
        assert set(entries) == set(np.flatnonzero(margin < window))
        assert held[entries[: near.held[t]]].all()
        assert not held[entries[near.held[t] :]].any()


def test_sweeps_halve_the_overflow():
    rng = np.random.default_rng(0)
    T, E, k = 2048, 16, 4
    scores = on_grid(rng.standard_normal((T, 3)) @ rng.standard_normal((3, E)) + 0.3 * rng.standard_normal((T, E)))
    even, prices = np.full(E, k * T // E), np.zeros(E)
    overflows = []
    for _ in range(6):
        window = windows(scores, k, prices)
        _, loads, near = choose_near(scores, k, prices, even, window)
        overflows.append(np.maximum(loads - even, 0).sum())
        change, left = sweep(near, scores.magic, prices, window, loads, even, even, 0.0)
        prices = prices + change
        assert left < 1 or overflows[-1] < 2 * E
    assert overflows[1] < overflows[0] / 2
    assert overflows[-1] < 2 * E


def test_an_expert_within_its_bounds_keeps_the_price_of_the_hub():
    # Loose bounds hold at prices 0 = the hub's, so no price moves.
    rng = np.random.default_rng(0)
    scores, prices = on_grid(rng.standard_normal((300, 6))), np.zeros(6)
    window = windows(scores, 2, prices)
    _, loads, near = choose_near(scores, 2, prices, np.full(6, 300), window)
    change, left = sweep(near, scores.magic, prices, window, loads, np.zeros(6, np.int64), np.full(6, 300), 0.0)
    assert np.array_equal(change, prices)
    assert left == 0
