"""Gates named by their parts, and factorials of them."""

import pytest
import torch

import gatelab
from gatelab.routers.compose import STAGES, factorial
from gatelab.testing import check_router


def test_defaults_are_topk_softmax():
    torch.manual_seed(0)
    ours = gatelab.create_router("select=topk", 16, 5)
    torch.manual_seed(0)
    expected = gatelab.create_router("topk-softmax", 16, 5)
    x = torch.randn(9, 16)
    assert torch.equal(ours(x).to_dense(), expected(x).to_dense())
    assert torch.equal(ours(x).aux_loss, expected(x).aux_loss)


@pytest.mark.parametrize("part", [f"{stage}={name}" for stage, parts in STAGES.items() for name in parts])
def test_every_part_keeps_the_contract_beside_the_defaults(part):
    check_router(lambda: gatelab.create_router(part, 16, 5))


def test_factorial():
    names = factorial(["score=linear,lfa", "balance=switch,none"], ["select=topk"])
    assert names == [
        "score=linear+balance=switch+select=topk",
        "score=linear+balance=none+select=topk",
        "score=lfa+balance=switch+select=topk",
        "score=lfa+balance=none+select=topk",
    ]


@pytest.mark.parametrize(
    ("vary", "hold", "words"),
    [
        ([], ["select=topk"], "needs a --vary"),
        (["score=linear,sphere"], [], "score='sphere' is unknown; choose one of linear, attention"),
        (["taste=sweet,sour"], [], "'taste' in 'taste=sweet' is no stage"),
        (["score=linear,lfa"], ["score=mlp"], "score stands twice"),
        (["score=linear,lfa"], ["select=topk,sinkhorn"], "hold one"),
    ],
)
def test_wrong_factorials(vary, hold, words):
    with pytest.raises(ValueError, match=words):
        factorial(vary, hold)
