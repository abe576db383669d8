"""Noise: its size, its mode, and that raw logits stay raw."""

import pytest
import torch

import gatelab
from gatelab import Router
from gatelab.routers.balance import GaussianNoise, InputJitter, LearnedNoise
from gatelab.routers.score import LinearScore
from gatelab.routers.select import TopK

E, T = 8, 20000


def router_with(noise, bias=False) -> Router:
    torch.manual_seed(0)
    return Router(score=LinearScore(4, E, bias), activation="none", select=TopK(2), balance=[noise])


NOISES = [InputJitter(0.1), GaussianNoise(0.3), LearnedNoise(4, E)]


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: type(noise).__name__)
def test_noise_is_for_training_and_leaves_raw_logits(noise):
    router, x = router_with(noise), torch.randn(5, 4)
    raw = x @ router.score.weight.T
    torch.manual_seed(1)
    training = router.train()(x)
    torch.testing.assert_close(training.router_logits, raw)
    assert not torch.equal(training.scores, raw)
    torch.manual_seed(1)
    assert torch.equal(router(x).scores, training.scores)  # torch's default generator, so recomputation repeats it
    torch.testing.assert_close(router.eval()(x).scores, raw)
    assert not router.train().guarantees.token_wise
    assert router.eval().guarantees.token_wise


def test_gaussian():
    noise = router_with(GaussianNoise(0.3))(torch.zeros(T, 4)).scores.detach()
    # 160,000 draws: the standard error of the standard deviation is .3/√320000 = .0005
    assert float(noise.std()) == pytest.approx(0.3, abs=0.003)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.004)
    assert gatelab.create_router("v-moe", 4, E).balance[0].std == 1 / E


def test_jitter():
    # one feature of 1: the logit is w times U(.9, 1.1), mean w and standard deviation .2/√12 = .0577 w
    router = router_with(InputJitter(0.1))
    x = torch.tensor([1.0, 0, 0, 0]).expand(T, 4)
    ratio = (router(x).scores / router.score.weight[:, 0]).detach()
    assert float(ratio.min()) >= 0.9 - 1e-6
    assert float(ratio.max()) <= 1.1 + 1e-6
    assert float(ratio.std()) == pytest.approx(0.2 / 12**0.5, abs=0.002)
    # all experts read the same jittered number
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))


def test_learned():
    router = router_with(LearnedNoise(4, E))
    with torch.no_grad():
        router.balance[0].weight[3, 0] = 2.0
    scores = router(torch.tensor([1.0, 0, 0, 0]).expand(T, 4)).scores.detach()
    noise = (scores - router.score.weight[:, 0].detach()).std(0)
    # softplus(0) = ln 2 = .6931, softplus(2) = 2.1269, each with the floor of .01
    assert noise[0].item() == pytest.approx(0.7031, rel=0.03)
    assert noise[3].item() == pytest.approx(2.1369, rel=0.03)


def test_noisy_topk_learns_its_noise_from_the_load_loss():
    torch.manual_seed(0)
    router = gatelab.create_router("noisy-topk", 4, E, 2)
    routing = router(torch.randn(64, 4))
    assert set(routing.losses) == {"importance", "load"}
    routing.losses["load"].backward()
    gradient = router.balance[0].weight.grad
    assert gradient is not None
    assert bool(gradient.any())
    assert set(router.eval()(torch.randn(64, 4)).losses) == {"importance"}
    # softmax over the chosen noisy logits
    torch.testing.assert_close(routing.to_dense().sum(1), torch.ones(64))


def test_importance_reads_clean_logits():
    torch.manual_seed(0)
    router, x = gatelab.create_router("v-moe", 4, E, noise=100.0, importance_coefficient=1.0), torch.randn(64, 4)
    quiet = gatelab.create_router("v-moe", 4, E, noise=0.0, importance_coefficient=1.0)
    quiet.load_state_dict(router.state_dict())
    torch.testing.assert_close(router(x).losses["importance"], quiet(x).losses["importance"])


def test_flops_count_the_noise_in_training_alone():
    router = gatelab.create_router("noisy-topk", 16, E)
    assert router.train().flops(3) == 2 * 3 * 16 * E * 2
    assert router.eval().flops(3) == 2 * 3 * 16 * E
