"""Gate entropy, top-1 margin, experts per token."""

import math

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelab.bench import metrics as m

UNTIMED = settings(deadline=None)  # other jobs share the cores, a deadline would fail at random

# token 0 undecided between two of four, token 1 sure, token 2 undecided between all, token 3 padding full of NaN
PROBABILITIES = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.25, 0.25, 0.25, 0.25], [float("nan")] * 4])
MASK = torch.tensor([True, True, True, False])
BOTH = pytest.mark.parametrize("metric", [m.gate_entropy, m.top1_margin])


def test_gate_entropy_worked():
    # H = ln 2, 0 and ln 4 = 2·ln 2: mean ln 2. Padding counts neither above nor below the line
    assert m.gate_entropy(PROBABILITIES, MASK).item() == pytest.approx(math.log(2))
    assert m.gate_entropy(PROBABILITIES[:2]).item() == pytest.approx(math.log(2) / 2)


def test_top1_margin_worked():
    # 0.5 − 0.5 = 0, 1 − 0 = 1, 0: mean 1/3
    assert m.top1_margin(PROBABILITIES, MASK).item() == pytest.approx(1 / 3)
    # (0.6 − 0.3 + 0.7 − 0.2)/2 = 0.4, wherever the two stand
    assert m.top1_margin(torch.tensor([[0.1, 0.3, 0.6], [0.7, 0.1, 0.2]])).item() == pytest.approx(0.4)


def test_limits():
    num_tokens, num_experts = 5, 8
    undecided = torch.full((num_tokens, num_experts), 1 / num_experts)
    sure = torch.eye(num_experts)[:num_tokens]
    assert m.gate_entropy(undecided).item() == pytest.approx(math.log(num_experts))
    assert m.gate_entropy(sure).item() == 0.0
    assert m.top1_margin(undecided).item() == 0.0
    assert m.top1_margin(sure).item() == 1.0


def test_a_single_expert_is_certain():
    assert m.gate_entropy(torch.ones(3, 1)).item() == 0.0
    assert m.top1_margin(torch.ones(3, 1)).item() == 1.0
    assert m.top1_margin(torch.ones(3, 1), torch.tensor([False] * 3)).item() == 0.0


@BOTH
def test_no_real_tokens_give_zero(metric):
    assert metric(torch.empty(0, 4)).item() == 0.0
    assert metric(PROBABILITIES, torch.zeros(4)).item() == 0.0


@BOTH
def test_layers_share_the_mask_and_no_graph_is_kept(metric):
    layers = torch.rand(3, 4, 5).softmax(-1).requires_grad_()
    figures = metric(layers, MASK)
    assert not figures.requires_grad
    torch.testing.assert_close(figures, torch.stack([metric(layer, MASK) for layer in layers]))


@BOTH
def test_a_mask_of_another_shape_is_named(metric):
    with pytest.raises(ValueError, match=r"token_mask has shape \(3,\), expected \(4,\)"):
        metric(PROBABILITIES, MASK[:3])


@UNTIMED
@given(num_tokens=st.integers(1, 6), num_experts=st.integers(2, 9), spread=st.floats(0, 50), seed=st.integers(0, 2**31))
def test_bounds_order_and_oracle(num_tokens, num_experts, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    z_TE = torch.randn(num_tokens, num_experts, dtype=torch.float64, generator=generator)
    p_TE = (spread * z_TE).softmax(-1)
    entropy, margin = m.gate_entropy(p_TE).item(), m.top1_margin(p_TE).item()
    assert entropy == pytest.approx(scipy.stats.entropy(p_TE.numpy(), axis=1).mean())
    assert -1e-9 <= entropy <= math.log(num_experts) + 1e-9
    assert 0.0 <= margin <= 1.0
    order = torch.randperm(num_experts, generator=generator)
    assert m.gate_entropy(p_TE[:, order]).item() == pytest.approx(entropy)
    assert m.top1_margin(p_TE[:, order]).item() == margin


def test_experts_per_token_worked():
    ids = torch.tensor([[2, 0, 1], [2, -1, 3], [-1, -1, -1], [1, 2, 0]])  # 3, 2, 0 and 3 experts
    assert m.experts_per_token(ids) == (0, 2.0, 3)
    # without the token that met no expert: (3 + 2 + 3)/3
    assert m.experts_per_token(ids, torch.tensor([1, 1, 0, 1])) == (2, pytest.approx(8 / 3), 3)
    # the fullest tokens are padding
    assert m.experts_per_token(ids, torch.tensor([0, 1, 1, 0])) == (0, 1.0, 2)


def test_experts_per_token_of_no_tokens():
    assert m.experts_per_token(torch.empty(0, 2, dtype=torch.int64)) == (0, 0.0, 0)
    assert m.experts_per_token(torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3)) == (0, 0.0, 0)


def test_experts_per_token_takes_layers():
    layers = torch.tensor([[[0, 1], [1, 0]], [[0, -1], [-1, -1]]])
    fewest, mean, most = m.experts_per_token(layers)
    assert (fewest.tolist(), mean.tolist(), most.tolist()) == ([2, 0], [2.0, 0.5], [2, 1])


def test_batches_are_weighted_by_their_real_tokens():
    # three tokens at 1/3 and one at 1: (3·1/3 + 1·1)/4 = 1/2; the plain mean of the batches would be 2/3
    batches = [m.top1_margin(PROBABILITIES, MASK), m.top1_margin(PROBABILITIES[1:2])]
    assert m.token_weighted_mean(torch.stack(batches), torch.tensor([3, 1])).item() == pytest.approx(0.5)
    assert m.token_weighted_mean(torch.stack(batches), torch.tensor([0, 0])).item() == 0.0


def test_token_weighted_mean_keeps_layers():
    means_BL = torch.tensor([[1.0, 4.0], [2.0, 8.0]])
    # weights 1/4 and 3/4: (1 + 6)/4 and (4 + 24)/4
    assert m.token_weighted_mean(means_BL, torch.tensor([10, 30])).tolist() == [1.75, 7.0]
