"""Cosine and MLP scores, activations, and what the sources say in numbers."""

import math

import pytest
import torch

import gatelab
from gatelab import Router
from gatelab.routers.activation import sqrt_softplus
from gatelab.routers.score import CosineScore, HadamardScore, LinearScore, MLPScore
from gatelab.routers.select import ExpertChoice, TopK
from gatelab.routers.weight import SigmoidOfChosen


def logits(score, x):
    return Router(score=score, select=TopK(1))(x).router_logits.detach()


def test_cosine():
    torch.manual_seed(0)
    score, x = CosineScore(6, 4, projection=3), torch.randn(10, 6)
    z = logits(score, x)
    # the scale starts at 1/.5 = 2 times a cosine
    expected = 2 * torch.cosine_similarity((x @ score.weight.T)[:, None], score.experts[None], dim=-1)
    torch.testing.assert_close(z, expected)
    torch.testing.assert_close(logits(score, 1e4 * x), z)  # the length of x does not matter (the bias starts at 0)
    score.log_scale.data.fill_(50.0)
    assert 50 < float(logits(score, x).abs().max()) <= 100.001  # bounded by 100 however large τ
    assert not logits(score, torch.zeros(2, 6)).any()


def test_mlp_and_hadamard_against_modules():
    torch.manual_seed(0)
    x = torch.randn(5, 6)
    mlp = MLPScore(6, 4)
    torch.testing.assert_close(logits(mlp, x), torch.nn.Sequential(mlp.first, torch.nn.GELU(), mlp.second)(x))
    assert mlp.width == 3
    hadamard = HadamardScore(6, 4)
    inner = torch.nn.Sequential(hadamard.first, torch.nn.GELU(), hadamard.second)
    torch.testing.assert_close(logits(hadamard, x), hadamard.third(inner(x) * x))


@pytest.mark.parametrize("make", [CosineScore, MLPScore, HadamardScore, LinearScore])
def test_flops_are_those_torch_counts(make):
    from torch.utils.flop_counter import FlopCounterMode

    router = Router(score=make(6, 4), select=TopK(1)).eval()
    with FlopCounterMode(display=False) as counter:
        router(torch.randn(5, 6))
    assert counter.get_total_flops() == router.flops(5)


def test_parameter_counts_are_those_of_the_docstrings():
    D, E, P, H = 6, 4, 3, 5
    assert sum(p.numel() for p in CosineScore(D, E, P).parameters()) == P * (D + 1) + E * P + 1
    assert sum(p.numel() for p in MLPScore(D, E, H).parameters()) == H * (D + 1) + E * (H + 1)
    assert sum(p.numel() for p in HadamardScore(D, E).parameters()) == 2 * D * (D + 1) + E * (D + 1)


def test_sqrt_softplus():
    z = torch.tensor([-200.0, -20.0, 0.0, 3.0, 1e4], requires_grad=True)
    y = sqrt_softplus(z)
    expected = [0.0, math.exp(-10), math.sqrt(math.log(2)), math.sqrt(math.log(1 + math.exp(3))), 100.0]
    assert y.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-18)
    y.sum().backward()
    # d/dz √softplus = σ(z)/(2 √softplus(z)); at -200 the clamp makes it 0 where the formula is 0/0
    assert z.grad is not None
    assert z.grad.tolist() == pytest.approx(
        [0.0, math.exp(-10) / 2, 0.25 / math.sqrt(math.log(2)), *z.grad.tolist()[3:]]
    )
    assert bool(z.grad.isfinite().all())


def test_saturated_sigmoids_do_not_tie():
    # in float32 the sigmoids of 18, 19 and 20 are all 1; llama4 selects on logits
    assert torch.sigmoid(torch.tensor([18.0, 19.0, 20.0])).unique().numel() == 1
    router = gatelab.create_router("llama4", 3, 3)
    router.score.weight.data = torch.eye(3)
    for row in torch.tensor([[18.0, 19, 20], [20, 18, 19], [19, 20, 18]]):
        routing = router(row[None])
        assert int(routing.expert_index[0]) == int(row.argmax())
        assert routing.weights.tolist() == [1.0]
    assert any(isinstance(part, SigmoidOfChosen) for part in router.weight.parts)


def test_expert_choice_by_hand():
    gates = torch.tensor([[0.4, 0.0, 0.2], [0.5, 0.1, 0.4], [0.3, 0.2, 0.6]])
    # C = ceil(3 · 2 / 3) = 2: expert 0 takes t1 (.5) and t0 (.4), expert 1 t2 (.2) and t1 (.1), expert 2 t2 and t1
    router = Router(score=lambda ctx: gates, activation="none", select=ExpertChoice(2), num_experts=3)
    routing = router(torch.zeros(3, 2))
    assert routing.to_dense().tolist() == torch.tensor([[0.4, 0, 0], [0.5, 0.1, 0.4], [0, 0.2, 0.6]]).tolist()
    assert routing.experts_per_token.tolist() == [1, 3, 2]  # at least 1, at most 3
    assert (float(routing.weights.min()), float(routing.weights.max())) == pytest.approx((0.1, 0.6))
