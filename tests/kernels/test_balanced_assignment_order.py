"""The order in which a systematic sample of the tokens stands for all of them."""

import numpy as np
import pytest

from gatelab.kernels.cpu._assignment_order import line_up
from gatelab.kernels.cpu._assignment_rows import Scores, choose

UNIT = 2.0**-40


def on_grid(values):
    values = np.rint(np.asarray(values, np.float64) / UNIT) * UNIT
    return Scores(values, 1.5 * 2.0**52 * UNIT, -1e6)


def test_by_expert_then_next_expert_then_gap_by_hand():
    scores = on_grid([[1, 9, 0], [5, 0, 4], [9, 8, 0], [0, 1, 3], [7, 0, 4], [9, 2, 8]])
    # k = 1. Expert 0 and next 1: token 2. Expert 0, next 2: tokens 1 and 5 (gap 1 both), then 4 (gap 3).
    # Expert 1: token 0; expert 2: token 3.
    assert line_up(scores, 1, np.zeros(3)).tolist() == [2, 1, 5, 4, 0, 3]
    # k = 2: the second best is the border. Expert 0, next 2: token 0. Expert 1, next 0 and 2: tokens 3 and 2.
    # Expert 2, next 1: tokens 1 and 4 (gap 4 both), then 5 (gap 6).
    assert line_up(scores, 2, np.zeros(3)).tolist() == [0, 3, 2, 1, 4, 5]


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
    order = line_up(on_grid(values[family]), k, rng.standard_normal(E).round())
    assert np.array_equal(np.sort(order), np.arange(T))


def test_a_systematic_sample_has_the_loads_of_all():
    rng = np.random.default_rng(0)
    T, E, k, stride = 8192, 16, 3, 16
    scores = on_grid(rng.standard_normal((T, 1)) * rng.standard_normal(E) + 0.1 * rng.standard_normal((T, E)))
    order = line_up(scores, k, np.zeros(E))
    # near prices, not those of the order
    prices, upper = np.rint(0.05 * rng.standard_normal(E) / UNIT) * UNIT, np.full(E, T)
    all_loads = choose(scores, k, prices, upper)[1] / T

    def error(tokens):
        sample = Scores(scores.values[tokens], scores.magic, scores.forbidden)
        return np.abs(choose(sample, k, prices, upper)[1] / len(tokens) - all_loads).sum()

    assert error(order[::stride]) < error(np.arange(0, T, stride)) / 3
