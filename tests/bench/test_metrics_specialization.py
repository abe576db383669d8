"""Specialisation, mutual information, co-activation rates."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelab.bench import metrics as m

UNTIMED = settings(deadline=None)  # other jobs share the cores, a deadline would fail at random


@st.composite
def contingencies(draw):
    """(V, E) counts."""
    num_labels, num_experts = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    row = st.lists(st.integers(0, 60), min_size=num_experts, max_size=num_experts)
    return torch.tensor(draw(st.lists(row, min_size=num_labels, max_size=num_labels)))


def test_domain_specialization_worked():
    # domain 0: 4 tokens, 3 use expert 0, 4 use expert 1, 1 uses expert 2 (2 experts per token); domain 1 has no token
    share = m.domain_specialization(torch.tensor([[3, 4, 1], [0, 0, 0]]), torch.tensor([4, 0]))
    assert share.tolist() == [[0.75, 1.0, 0.25], [0.0, 0.0, 0.0]]


def test_domain_specialization_divides_by_tokens_not_by_assignments():
    ids = torch.tensor([[0, 1], [0, -1], [-1, -1], [1, 0]])  # two choices, one dropped choice, one dropped token
    counts = m.count_by_label(torch.zeros(4, dtype=torch.int64), ids, num_labels=1, num_experts=2)
    # expert 0 serves 3 of 4 tokens, expert 1 two; the row sums to the 5/4 experts of a mean token
    assert m.domain_specialization(*counts).tolist() == [[0.75, 0.5]]
    assert m.domain_specialization(*counts).sum().item() == m.experts_per_token(ids).mean.item()


def test_vocabulary_specialization_worked():
    # id 0: 9 of 10 tokens on expert 1. id 1: 6 of 12 on expert 0. id 2 is seen once. id 3 never
    assignments = torch.tensor([[1, 9], [6, 6], [0, 1], [0, 0]])
    tokens = torch.tensor([10, 12, 1, 0])
    assert m.vocabulary_specialization(assignments, tokens).item() == pytest.approx((0.9 + 0.5) / 2)
    # from one token on, the id seen once scores a full 1; the unseen id never counts
    assert m.vocabulary_specialization(assignments, tokens, min_tokens=1).item() == pytest.approx((0.9 + 0.5 + 1) / 3)
    assert m.vocabulary_specialization(assignments, tokens, min_tokens=11).item() == 0.5
    assert m.vocabulary_specialization(assignments, tokens, min_tokens=13).item() == 0.0
    with pytest.raises(ValueError, match="min_tokens=0 must be at least 1"):
        m.vocabulary_specialization(assignments, tokens, min_tokens=0)


def test_vocabulary_specialization_of_hash_and_uniform_routing():
    token_ids = torch.arange(4).repeat(64)
    hashed, cycled = (token_ids % 2)[:, None], (torch.arange(256) // 4 % 2)[:, None]
    by_hash = m.count_by_label(token_ids, hashed, num_labels=4, num_experts=2)
    by_turn = m.count_by_label(token_ids, cycled, num_labels=4, num_experts=2)
    assert m.vocabulary_specialization(*by_hash).item() == 1.0
    assert m.vocabulary_specialization(*by_turn).item() == 0.5  # K/E
    # both loads are (128, 128): balance says nothing about specialisation
    assert m.max_violation(by_hash.assignments.sum(0)).item() == m.max_violation(by_turn.assignments.sum(0)).item() == 0


def test_mutual_information_worked():
    # p = (3/8, 1/8; 1/8, 3/8), all marginals 1/2: I = 2·(3/8)·ln(3/2) + 2·(1/8)·ln(1/2) = ¾·ln 3 − ln 2
    counts = torch.tensor([[3, 1], [1, 3]])
    assert m.mutual_information(counts).item() == pytest.approx(0.75 * math.log(3) - math.log(2))


def test_mutual_information_limits():
    assert m.mutual_information(torch.tensor([[5, 0, 0], [0, 0, 5]])).item() == pytest.approx(math.log(2))
    # rows in proportion 1 : 2, so independent
    assert m.mutual_information(torch.tensor([[2, 6], [4, 12]])).item() == pytest.approx(0.0, abs=1e-12)
    assert m.mutual_information(torch.zeros(3, 2)).item() == 0.0
    assert m.mutual_information(torch.tensor([[7]])).item() == 0.0


def test_mutual_information_bias_of_independent_labels():
    # V = E = 8, N = 4000: (8 − 1)²/(2·4000) = 0.0061 instead of 0
    cells = torch.randint(0, 64, (4000,), generator=torch.Generator().manual_seed(0))
    estimate = m.mutual_information(torch.bincount(cells, minlength=64).view(8, 8)).item()
    assert 0.003 < estimate < 0.01  # about 49 degrees of freedom: ±40 % is two standard deviations


@UNTIMED
@given(counts=contingencies(), factor=st.integers(2, 5), data=st.data())
def test_mutual_information_invariants(counts, factor, data):
    information = m.mutual_information(counts)
    assert 0.0 <= information <= math.log(min(counts.shape)) + 1e-9
    torch.testing.assert_close(m.mutual_information(counts * factor), information)
    torch.testing.assert_close(m.mutual_information(counts.mT), information)
    order = data.draw(st.permutations(range(counts.shape[1])))
    torch.testing.assert_close(m.mutual_information(counts[:, order]), information)
    p, total = counts.double() / counts.sum().clamp(min=1), 0.0
    for x, i in (p > 0).nonzero().tolist():
        total += (p[x, i] * (p[x, i] / (p[x].sum() * p[:, i].sum())).log()).item()
    assert information.item() == pytest.approx(total, abs=1e-12)


@UNTIMED
@given(counts=contingencies())
def test_specialization_bounds_and_layers(counts):
    tokens = counts.sum(-1)  # one expert per token
    layers, layer_tokens = torch.stack([counts, counts.flip(1)]), torch.stack([tokens, tokens])
    share = m.domain_specialization(layers, layer_tokens)
    assert ((share >= 0) & (share <= 1)).all()
    torch.testing.assert_close(share.sum(-1), (layer_tokens > 0).double())
    score = m.vocabulary_specialization(layers, layer_tokens, min_tokens=1)
    assert ((score >= 0) & (score <= 1)).all()
    torch.testing.assert_close(score[0], score[1])
    assert (score >= 1 / counts.shape[1] - 1e-9).all() or tokens.sum() == 0
    torch.testing.assert_close(m.mutual_information(layers), m.mutual_information(counts).expand(2))


def test_co_activation_rate_worked():
    # expert 0 has 4 tokens, 1 of them also on expert 1, which has 2; expert 2 is dead
    rate = m.co_activation_rate(torch.tensor([[4, 1, 0], [1, 2, 0], [0, 0, 0]]))
    assert rate.tolist() == [[1.0, 0.25, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_co_activation_rate_of_every_subset():
    # each of the 6 pairs out of 4 experts once: K = 2, E = 4, so (K − 1)/(E − 1) = 1/3 off the diagonal
    ids = torch.combinations(torch.arange(4), 2)
    expected = torch.full((4, 4), 1 / 3, dtype=torch.float64).fill_diagonal_(1.0)
    torch.testing.assert_close(m.co_activation_rate(m.co_activation(ids, 4)), expected)
    layers = torch.stack([ids, ids.flip(1)])
    torch.testing.assert_close(m.co_activation_rate(m.co_activation(layers, 4)), expected.expand(2, 4, 4))
