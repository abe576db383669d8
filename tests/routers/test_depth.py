"""Mixture-of-Depths: a share of each sequence in training, a threshold in evaluation."""

import math

import pytest
import torch

import gatelab
from gatelab import Context, Selection
from gatelab.routers.balance import ChosenLoss


def test_a_share_of_each_sequence():
    router = gatelab.create_router("mixture-of-depths", 8, 1).train()
    x = torch.randn(3, 20, 8)
    routing = router(x)
    r = routing.router_logits.view(3, 20)
    # ceil(20 · 0.125) = 3 of each row, those with the largest r, weighed by r itself
    best = r.topk(3, dim=1).indices
    expected = torch.zeros(3, 20).scatter(1, best, r.gather(1, best))
    torch.testing.assert_close(routing.to_dense().view(3, 20), expected)
    mask = torch.ones(3, 20, dtype=torch.bool)
    mask[0, 8:], mask[1, 9:], mask[2, :] = False, False, False
    # 8 real tokens: one; 9: two; none: none
    assert router(x, token_mask=mask).experts_per_token.view(3, 20).sum(1).tolist() == [1, 2, 0]
    assert not router.guarantees.causal


def test_evaluation_is_a_threshold():
    router = gatelab.create_router("mixture-of-depths", 8, 1).eval()
    routing = router(torch.randn(3, 20, 8))
    torch.testing.assert_close(routing.to_dense(), routing.router_logits.relu())
    assert router.guarantees.causal
    assert router.guarantees.token_wise
    assert not router.guarantees.dropless


def test_the_loss():
    # logits (0, 2) for two tokens, the second taken: (ln 2 + ln(1 + e^-2))/2 = (.693147 + .126928)/2
    ctx = Context(torch.zeros(1, 2, 2), num_experts=1)
    ctx.logits, ctx.selection = torch.tensor([[0.0], [2.0]]), Selection(torch.tensor([[-1], [0]]))
    expected = (math.log(2) + math.log(1 + math.exp(-2))) / 2
    assert ChosenLoss(0.5).losses(ctx)["chosen"].item() == pytest.approx(0.5 * expected)


def test_training_teaches_the_threshold():
    torch.manual_seed(0)
    router = gatelab.create_router("mixture-of-depths", 8, 1, chosen_coefficient=1.0)
    x = torch.randn(4, 64, 8)
    x[..., 0] = 1.0  # a constant feature, for the offset
    optimizer = torch.optim.Adam(router.parameters(), lr=0.3)
    for _ in range(50):
        optimizer.zero_grad()
        routing = router.train()(x)
        routing.aux_loss.backward()
        optimizer.step()
    agree = (router.eval()(x).to_dense() > 0) == (router.train()(x).experts_per_token[:, None] > 0)
    assert agree.float().mean().item() > 0.95


def test_there_is_no_top_k():
    with pytest.raises(ValueError, match="top_k=1: in mixture-of-depths blocks choose tokens; set share="):
        gatelab.create_router("mixture-of-depths", 8, 1, 1)
    with pytest.raises(ValueError, match="share=2 must be above 0"):
        gatelab.create_router("mixture-of-depths", 8, 1, share=2)


def test_more_blocks_take_their_share_each():
    # E = 3, share .1 of 10 tokens: one each, in exact ratios (.1 · 3 = .30000000000000004 in floats makes it two)
    routing = gatelab.create_router("mixture-of-depths", 8, 3, share=0.1).train()(torch.randn(10, 8))
    assert routing.tokens_per_expert.tolist() == [1, 1, 1]
