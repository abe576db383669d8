"""SparseMixer-v2 by hand; tests/routers/test_published.py compares it with the released model."""

import math

import pytest
import torch

from gatelab import Context
from gatelab.routers.select import SparseMixer


def pick(scores, k, eps, training):
    scores = torch.as_tensor(scores)
    ctx = Context(torch.zeros(1, scores.shape[0], 2), num_experts=scores.shape[1], training=training)
    return SparseMixer(k, eps)(scores, ctx)


def test_by_hand():
    # 2ε = .2: (max - z)/max(|z|, max) of (2, 1.8, 1) is (0, .1, .5), so expert 2 is closed for the first pick
    # weight e²/(e² + e^1.8) = 1/(1 + e^-.2) = .549834; second pick: 1.8 is largest, (0.8/1.8 = .44) closes 1: weight 1
    # (the taken expert 0 is closed as well)
    selection = pick([[2.0, 1.8, 1.0]], 2, 0.1, training=False)
    assert selection.ids.tolist() == [[0, 1]]
    assert selection.gates.tolist() == [[pytest.approx(1 / (1 + math.exp(-0.2))), 1.0]]


def test_negative_and_zero_logits():
    # all negative: max = -1, (max - z)/|z| of (-1, -1.1, -2) is (0, .0909, .5): -1.1 stays open at 2ε = .2
    gates = pick([[-1.0, -1.1, -2.0]], 1, 0.1, training=False).gates
    assert gates.tolist() == [[pytest.approx(1 / (1 + math.exp(-0.1)))]]
    # all zero: 0/0 upstream; here every expert is open
    assert pick([[0.0, 0.0, 0.0, 0.0]], 1, 0.1, training=False).gates.tolist() == [[0.25]]


def test_sampling():
    torch.manual_seed(0)
    T = 20000
    scores = torch.tensor([[1.0, 0.9, 0.2]]).repeat(T, 1)
    selection = pick(scores, 1, 0.1, training=True)
    p = 1 / (1 + math.exp(0.1))  # of expert 1; expert 2 is closed ((1 - .2)/1 > .2)
    share = (selection.ids[:, 0] == 1).float().mean().item()
    assert share == pytest.approx(p, abs=0.015)  # a standard deviation of .0035
    assert not (selection.ids == 2).any()
    # the largest keeps its weight; another is weighed in full one time in four, else a third
    best = selection.ids[:, 0] == 0
    torch.testing.assert_close(selection.gates[best], torch.full((int(best.sum()), 1), 1 - p))
    whole = torch.isclose(selection.gates[~best], torch.tensor(p))
    third = torch.isclose(selection.gates[~best], torch.tensor(p / 3))
    assert bool((whole | third).all())
    assert whole.float().mean().item() == pytest.approx(0.25, abs=0.02)


def test_the_gradient_is_that_of_the_unscaled_weight():
    scores = torch.tensor([[1.0, 0.9, 0.2]], requires_grad=True)
    for seed in range(20):
        torch.manual_seed(seed)
        selection = pick(scores, 1, 0.1, training=True)
        p = torch.tensor([math.exp(0.1), 1.0]) / (1 + math.exp(0.1))
        (gradient,) = torch.autograd.grad(selection.gates.sum(), scores)
        # ∂p₁/∂z = p₁(1 - p₁) at the chosen, -p₀ p₁ at the other, 0 at the closed expert
        s = float(p[0] * p[1])
        expected = [s, -s, 0.0] if selection.ids.item() == 0 else [-s, s, 0.0]
        assert gradient[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_every_pick_is_another_expert():
    torch.manual_seed(0)
    ids = pick(torch.randn(200, 5), 5, 10.0, training=True).ids
    assert ids.sort(1).values.tolist() == [list(range(5))] * 200
