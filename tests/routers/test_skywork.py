"""Skywork-MoE: normalised logits, and the loss that follows the drop rate."""

import functools
import math

import pytest
import torch

import gatelab
from gatelab.routers.activation import std_softmax
from gatelab.routers.balance import DeviationLoss
from gatelab.routers.routing import Summary


class TestStdSoftmax:
    def test_by_hand(self):
        # z = (0, 2, 4): mean 2, unbiased variance (4 + 0 + 4)/2 = 4, normalised (−1, 0, 1).
        e = math.e
        expected = torch.tensor([[1 / e, 1, e]]) / (1 / e + 1 + e)
        torch.testing.assert_close(std_softmax(torch.tensor([[0.0, 2, 4]])), expected)
        torch.testing.assert_close(std_softmax(torch.tensor([[5.0, 5.2, 5.4]])), expected, rtol=1e-4, atol=1e-6)

    def test_the_scale_sharpens(self):
        z = torch.tensor([[0.0, 2, 4]])
        torch.testing.assert_close(std_softmax(z, 3.0), torch.tensor([[-3.0, 0, 3]]).softmax(1))

    @pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e4])
    @pytest.mark.parametrize("E", [1, 2, 5])
    def test_equal_logits_are_uniform_with_a_finite_gradient(self, value, E):
        z = torch.full((2, E), value, requires_grad=True)
        p = std_softmax(z)
        torch.testing.assert_close(p, torch.full((2, E), 1 / E))
        p[:, 0].sum().backward()
        assert bool(z.grad.isfinite().all())

    def test_it_agrees_with_torch_std(self):
        z = torch.randn(30, 7, generator=torch.Generator().manual_seed(0))
        expected = ((z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True)).softmax(1)
        torch.testing.assert_close(std_softmax(z), expected)


class TestDeviationLoss:
    def loss(self, probabilities) -> float:
        p = torch.tensor(probabilities)
        ctx = gatelab.Context(torch.zeros(1, p.shape[0], 1), num_experts=p.shape[1])
        ctx.probabilities = p
        return float(DeviationLoss(initial=1.0).losses(ctx)["deviation"])

    def test_by_hand(self):
        # Mean P = (.7, .3): (½ − .7)² + (½ − .3)² = .08.
        assert self.loss([[0.9, 0.1], [0.5, 0.5]]) == pytest.approx(0.08)

    def test_perfect_balance_is_zero(self):
        assert self.loss([[1.0, 0.0], [0.0, 1.0]]) == pytest.approx(0, abs=1e-12)

    @pytest.mark.parametrize(("kept", "expected"), [(100, 0.0), (98, 0.004), (50, 0.01)])
    def test_the_coefficient_moves_towards_the_drop_rate(self, kept, expected):
        # d = 0, .02, .5: min(d/5, .01) = 0, .004, .01; a ← .99 · .005 + .01 · that.
        part = DeviationLoss(initial=0.005)
        part.update([Summary(torch.tensor([kept / 2] * 2), torch.tensor([50.0, 50]), torch.tensor(50.0), {})])
        assert float(part.coefficient) == pytest.approx(0.99 * 0.005 + 0.01 * expected)


def test_the_gate_from_the_equations():
    torch.manual_seed(0)
    router = gatelab.create_router("skywork-moe", 16, 6, capacity_factor=None)
    x = torch.randn(20, 16)
    routing = router(x)
    z = x @ router.score.weight.T
    p = ((z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True)).softmax(1)
    weights, ids = p.topk(2, 1)
    dense = torch.zeros(20, 6).scatter(1, ids, weights / weights.sum(1, keepdim=True))
    torch.testing.assert_close(routing.to_dense(), dense)
    torch.testing.assert_close(routing.probabilities, p)
    assert float(routing.losses["deviation"].detach()) == pytest.approx(
        0.01 * float((1 / 6 - p.mean(0)).square().sum().detach()), rel=1e-5
    )


def test_sharpness_and_capacity_are_options():
    router = gatelab.create_router("skywork-moe", 16, 6, sharpness=2.0)
    assert isinstance(router.activation, functools.partial)
    x = torch.randn(60, 16) + 1
    routing = router(x)
    assert int(routing.tokens_per_expert.max()) <= 25  # ceil(1.25 · 120 / 6)
    assert router.eval().guarantees.dropless
