"""Coverage: worked numbers, and the Lorenz curve it is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelab.bench.metrics import coverage, gini

UNTIMED = settings(deadline=None)  # other jobs share the cores, a deadline would fail at random


def test_worked_example():
    # n = (2, 0, 5, 1): falling 5, 2, 1, 0 of 8, summed up 5, 7, 8, 8
    assert coverage(torch.tensor([2, 0, 5, 1])).tolist() == pytest.approx([5 / 8, 7 / 8, 1, 1])


def test_perfect_balance_and_no_assignments_are_the_diagonal():
    for n in (torch.full((4,), 7), torch.zeros(4, dtype=torch.int64)):
        assert coverage(n).tolist() == pytest.approx([0.25, 0.5, 0.75, 1])


@UNTIMED
@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=40).map(torch.tensor))
def test_it_rises_to_one_and_its_area_is_the_gini_index(n):
    curve = coverage(n)
    E = len(n)
    assert curve[-1].item() == pytest.approx(1)
    assert (curve.diff() >= -1e-12).all()
    # Gini = 2·(area under the curve − 1/2), the area by trapezia of width 1/E that begin at 0
    area = (curve.sum() - curve[-1] / 2) / E
    assert (2 * area - 1).item() == pytest.approx(gini(n).item(), abs=1e-9)
