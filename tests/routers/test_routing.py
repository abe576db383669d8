"""The contract: makers, views and verbs on worked numbers."""

import pytest
import torch
from torch.utils import _pytree as pytree

from gatelab import Routing

# Three tokens, three experts, K = 2: token 0 → experts 2, 0; token 1 → expert 2 alone; token 2 → experts 1, 2.
IDS = torch.tensor([[2, 0], [2, -1], [1, 2]])
WEIGHTS = torch.tensor([[0.7, 0.3], [1.0, 9.0], [0.6, 0.4]])


@pytest.fixture
def routing():
    return Routing.from_topk(IDS, WEIGHTS, 3)


def test_layout(routing):
    # Expert 0 owns token 0; expert 1 token 2; expert 2 tokens 0, 1, 2: five assignments and a tail of one.
    assert routing.expert_offsets.tolist() == [0, 1, 2, 5]
    assert routing.token_index[:5].tolist() == [0, 2, 0, 1, 2]
    assert routing.choice[:5].tolist() == [1, 0, 0, 0, 1]
    assert routing.weights.tolist() == pytest.approx([0.3, 0.6, 0.7, 1.0, 0.4, 0.0])
    assert routing.expert_index.tolist() == [0, 1, 2, 2, 2, 3]
    assert routing.tokens_per_expert.tolist() == [1, 1, 3]
    assert routing.experts_per_token.tolist() == [2, 1, 2]
    assert routing.compact().token_index.shape == (5,)


def test_views(routing):
    weights, ids = routing.topk()
    assert ids.tolist() == IDS.tolist()
    torch.testing.assert_close(weights, torch.tensor([[0.7, 0.3], [1.0, 0.0], [0.6, 0.4]]))
    dense = torch.tensor([[0.3, 0.0, 0.7], [0.0, 0.0, 1.0], [0.0, 0.6, 0.4]])
    torch.testing.assert_close(routing.to_dense(), dense)
    assert routing.to_scipy().toarray() == pytest.approx(dense.numpy())
    assert routing.to_scipy().has_canonical_format


def test_topk_closes_gaps_left_by_drops():
    # Token 0 loses its first choice, so its second comes first; K shrinks to what is left.
    routing = Routing.from_topk(IDS[:1], WEIGHTS[:1], 3, keep=torch.tensor([[False, True]]))
    weights, ids = routing.topk()
    assert ids.tolist() == [[0]]
    assert weights.tolist() == [[pytest.approx(0.3)]]
    assert routing.requested.tolist() == [1, 0, 1]
    assert routing.dropped.tolist() == [0, 0, 1]


def test_combine_ignores_the_tail_even_if_it_is_nan(routing):
    x = torch.eye(3, requires_grad=True)
    weights = WEIGHTS.clone().requires_grad_()
    routing = Routing.from_topk(IDS, weights, 3)
    rows = torch.where(routing.live[:, None], routing.dispatch(x), torch.nan)
    y = routing.combine(rows)
    # Identity rows: y_t = (Σ weights) · x_t = 1 · x_t for all three tokens.
    torch.testing.assert_close(y, torch.eye(3))
    y.sum().backward()
    # d y / d weight = Σ x_t = 1 where an expert is chosen, 0 where none is.
    torch.testing.assert_close(weights.grad, torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]]))
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_weights_on_input():
    routing = Routing.from_topk(IDS, WEIGHTS, 3, weights_on_input=True)
    x = torch.eye(3)
    # Square what comes in: with the weight on the input it is squared too. Token 0: 0.7² + 0.3² = 0.58.
    y = routing.combine(routing.dispatch(x).square())
    torch.testing.assert_close(y.diagonal(), torch.tensor([0.58, 1.0, 0.52]))


def test_masked_tokens_go_nowhere():
    routing = Routing.from_topk(IDS, WEIGHTS, 3, token_mask=torch.tensor([True, False, True]))
    assert routing.experts_per_token.tolist() == [2, 0, 2]
    assert routing.requested.tolist() == [1, 1, 2]
    assert float(routing.summary().num_tokens) == 2


def test_from_mask_ranks_by_weight():
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    weights = torch.tensor([[0.1, 9.0, 0.2], [1.0, 1.0, 1.0], [0.3, 0.1, 0.2]])
    routing = Routing.from_mask(mask, weights)
    assert routing.topk()[1].tolist() == [[2, 0, -1], [-1, -1, -1], [0, 2, 1]]
    torch.testing.assert_close(routing.to_dense(), torch.where(mask, weights, 0))


def test_from_expert_choice():
    # Expert 0 takes tokens 2 and 1 (in that order), expert 1 takes token 2 and leaves a slot empty.
    token_ids, weights = torch.tensor([[2, 1], [2, -1]]), torch.tensor([[0.5, 0.4], [0.6, 7.0]])
    routing = Routing.from_expert_choice(token_ids, weights, num_tokens=4)
    expected = torch.tensor([[0.0, 0.0], [0.4, 0.0], [0.5, 0.6], [0.0, 0.0]])
    torch.testing.assert_close(routing.to_dense(), expected)
    assert routing.token_index[:3].tolist() == [1, 2, 2]
    assert routing.topk()[1].tolist() == [[-1, -1], [0, -1], [1, 0], [-1, -1]]


def test_defaults_for_what_was_not_given(routing):
    torch.testing.assert_close(routing.scores, routing.to_dense())
    torch.testing.assert_close(routing.probabilities.sum(1), torch.ones(3))
    assert not routing.router_logits.any()


def test_is_a_pytree(routing):
    doubled = pytree.tree_map_only(torch.Tensor, lambda t: t * 2, routing)
    assert isinstance(doubled, Routing)
    torch.testing.assert_close(doubled.weights, routing.weights * 2)
    assert doubled.num_tokens == 3


def test_aux_loss_sums(routing):
    losses = {"a": torch.tensor(0.5), "b": torch.tensor(0.25)}
    assert float(Routing.from_topk(IDS, WEIGHTS, 3, losses=losses).aux_loss) == 0.75
    assert float(routing.aux_loss) == 0


def test_shapes_that_differ():
    with pytest.raises(ValueError, match=r"both must be \(T, K\)"):
        Routing.from_topk(IDS, WEIGHTS[:, :1], 3)
