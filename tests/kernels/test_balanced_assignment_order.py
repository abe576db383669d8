"""The order in which a systematic sample of the tokens stands for all of them."""

import numpy as np
import pytest

from gatelab.kernels.cpu._assignment_order import line_up
from gatelab.kernels.cpu._assignment_rows import Scores, choose

UNIT = 2.0**-40


def on_grid(values):
    values = np.rint(np.asarray(values, np.float64) / UNIT) * UNIT
    return Scores(values, 1.5 * 2.0**52 * UNIT, -1e6)


def test_by_pair_and_gap_every_second_pair_backwards_by_hand():
    scores = on_grid([[1, 9, 0], [5, 0, 4], [9, 8, 0], [0, 1, 3], [7, 0, 4], [9, 2, 8]])
    # k = 1. Pair 0, 1: tokens 0 (expert 0 behind by 8) and 2 (ahead by 1). Pair 0, 2: tokens 1 and 5 (ahead by 1), then
    # 4 (by 3); turned round. Pair 1, 2: token 3.
    order, pairs = line_up(scores, 1, np.zeros(3))
    assert order.tolist() == [0, 2, 4, 5, 1, 3]
    assert pairs == 3
    # k = 2, so the second best against the third. Pair 0, 1: token 3 (expert 0 behind by 1). Pair 0, 2: token 0 (ahead
    # by 1). Pair 1, 2: tokens 5 (behind by 6), 1 and 4 (behind by 4), then 2 (ahead by 8).
    assert line_up(scores, 2, np.zeros(3))[0].tolist() == [3, 0, 5, 1, 4, 2]


@pytest.mark.parametrize("family", ["normal", "tied", "constant", "forbidden"])
@pytest.mark.parametrize(("T", "E", "k"), [(1, 1, 1), (1, 5, 2), (50, 4, 4), (300, 7, 3), (300, 2, 1)])
def test_every_token_once(family, T, E, k):
    rng = np.random.default_rng(0)
    values = {
        "normal": rng.standard_normal((T, E)),
        "tied": rng.integers(0, 3, (T, E)),
        "constant": np.zeros((T, E)),
        "forbidden": np.where(rng.random((T, E)) < 0.7, -np.inf, 1.0),
    }
    order, pairs = line_up(on_grid(values[family]), k, rng.standard_normal(E).round())
    assert 1 <= pairs <= T
    assert np.array_equal(np.sort(order), np.arange(T))


@pytest.mark.parametrize("k", [1, 3, 6])
def test_a_systematic_sample_has_the_loads_of_all(k):
    T, E, stride = 8192, 16, 16
    upper, errors = np.full(E, T), np.zeros(2)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        scores = on_grid(rng.standard_normal((T, 1)) * rng.standard_normal(E))
        order = line_up(scores, k, np.zeros(E))[0]
        prices = np.rint(0.05 * rng.standard_normal(E) / UNIT) * UNIT  # near prices, not those of the order
        share = choose(scores, k, prices, upper)[1] / T
        for way, tokens in enumerate((order[::stride], np.arange(0, T, stride))):
            sample = Scores(scores.values[tokens], scores.magic, scores.forbidden)
            errors[way] += np.abs(choose(sample, k, prices, upper)[1] / len(tokens) - share).sum()
    assert errors[0] < errors[1] / 5
