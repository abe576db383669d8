"""Saturation and churn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelab.bench import metrics as m

UNTIMED = settings(deadline=None)  # other jobs share the cores, a deadline would fail at random
BOTH = pytest.mark.parametrize("metric", [m.saturation, m.churn])

# common experts per token: 1 (the 3), 2 (in another order), 0
NOW = torch.tensor([[3, 0], [1, 2], [0, 1]])
FINAL = torch.tensor([[2, 3], [2, 1], [2, 3]])


def test_worked_with_fixed_k():
    # 3 of 6 choices are final; the other half was replaced
    assert m.saturation(NOW, FINAL).item() == 0.5
    assert m.churn(NOW, FINAL).item() == 0.5
    mask = torch.tensor([1, 1, 0])
    assert m.saturation(NOW, FINAL, mask).item() == 0.75
    assert m.churn(NOW, FINAL, mask).item() == 0.25
    # first choices only: (3, 1, 0) against (2, 2, 2)
    assert m.saturation(NOW[:, :1], FINAL[:, :1]).item() == 0.0


def test_worked_with_a_varying_number_of_experts():
    now = torch.tensor([[0, 1, 2], [3, -1, -1], [-1, -1, -1]])
    final = torch.tensor([[2, -1], [3, 0], [1, -1]])
    # in common 1 + 1 + 0 = 2 of the final 1 + 2 + 1 = 4; −1 against −1 is nothing in common
    assert m.saturation(now, final).item() == 0.5
    # 4 + 4 assignments, 2 in common on both sides: (8 − 4)/8
    assert m.churn(now, final).item() == 0.5
    # the other way round: 2 of 4 final again, and the same churn
    assert m.churn(final, now).item() == 0.5


def test_experts_that_appear_count_as_churn():
    # 1 assignment became 3, the old one stays: (1 + 3 − 2)/4
    assert m.churn(torch.tensor([[0, 1, 2]]), torch.tensor([[0]])).item() == 0.5
    assert m.saturation(torch.tensor([[0, 1, 2]]), torch.tensor([[0]])).item() == 1.0


def test_nothing_routed_is_saturated_and_still():
    nothing = torch.full((2, 2), -1)
    assert m.saturation(NOW[:2], nothing).item() == 1.0
    assert m.saturation(nothing, NOW[:2]).item() == 0.0
    assert m.churn(nothing, nothing).item() == 0.0
    assert m.saturation(NOW[:0], NOW[:0]).item() == 1.0
    assert m.churn(NOW, FINAL, torch.zeros(3)).item() == 0.0


@BOTH
def test_layers_each_have_their_figure(metric):
    layers, finals = torch.stack([NOW, FINAL]), torch.stack([FINAL, FINAL])
    assert metric(layers, finals).tolist() == [metric(NOW, FINAL).item(), metric(FINAL, FINAL).item()]


@BOTH
def test_other_tokens_are_refused(metric):
    with pytest.raises(ValueError, match=r"shapes \(3, 2\) and \(2, 2\), expected the same tokens"):
        metric(NOW, FINAL[:2])
    with pytest.raises(ValueError, match="token_mask has shape"):
        metric(NOW, FINAL, torch.ones(2))


@UNTIMED
@given(num_experts=st.integers(1, 7), num_tokens=st.integers(1, 8), seed=st.integers(0, 2**31), data=st.data())
def test_invariants(num_experts, num_tokens, seed, data):
    generator = torch.Generator().manual_seed(seed)
    k = data.draw(st.integers(1, num_experts))
    a, b = (torch.rand(num_tokens, num_experts, generator=generator).argsort(-1)[:, :k] for _ in range(2))
    assert 0.0 <= m.churn(a, b) <= 1.0
    # with K experts per token everywhere churn is what saturation lacks, and both are symmetric
    torch.testing.assert_close(m.churn(a, b), 1 - m.saturation(a, b))
    assert m.churn(a, b) == m.churn(b, a)
    assert m.saturation(a, b) == m.saturation(b, a)
    assert m.saturation(a, a.flip(-1)) == 1.0
    renamed = torch.randperm(num_experts, generator=generator)
    assert m.churn(renamed[a], renamed[b]) == m.churn(a, b)
    overlap = sum(len(set(x) & set(y)) / k for x, y in zip(a.tolist(), b.tolist(), strict=True)) / num_tokens
    assert m.saturation(a, b).item() == pytest.approx(overlap)  # OLMoE's own form, the mean over tokens


def test_unrelated_routings_overlap_by_k_over_e():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(20_000, 8, generator=generator).argsort(-1)[:, :2] for _ in range(2))
    # standard deviation of the mean below 0.002
    assert m.saturation(a, b).item() == pytest.approx(2 / 8, abs=0.01)
