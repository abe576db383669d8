"""`topk_gate`: worked examples, the gates it stands for, Hugging Face's routers, wrong arguments."""

import math

import pytest
import torch
from torch import nn

import gatelab
from gatelab import kernels


def test_worked_example():
    # Row 0: softmax of ln[1, 2, 5] = [1, 2, 5]/8; the two best are 5/8 and 2/8, renormalised 5/7 and 2/7, times 2.
    # Row 1: ln[4, 1, 3]: 4/8 and 3/8, so 8/7 and 6/7. Both rows sum to 8 before the softmax.
    logits = torch.tensor([[1.0, 2, 5], [4, 1, 3]]).log()
    weights, ids, logsumexp, counts = kernels.topk_gate(logits, 2, renormalize=True, scale=2.0)
    torch.testing.assert_close(weights, torch.tensor([[10, 4], [8, 6]]) / 7)
    assert ids.tolist() == [[2, 1], [0, 2]]
    torch.testing.assert_close(logsumexp, torch.full((2,), math.log(8)))
    assert counts.tolist() == [1, 1, 2]


def test_groups_by_hand():
    # Three groups of two. By max: 5 and 4 win, groups 0 and 1. By the two best: 5 + 0, 4 + 3, 2 + 2.5, groups 1 and 0;
    # a bias of 3 on expert 4 makes the last 5 + 2.5 and beats both. Never expert 5 alone: 2.5 is no one's best.
    logits = torch.tensor([[5.0, 0, 4, 3, 2, 2.5]])
    options = {"num_groups": 3, "keep_groups": 1, "select_on": "logits"}
    assert kernels.topk_gate(logits, 2, **options).topk_ids.tolist() == [[0, 1]]
    assert kernels.topk_gate(logits, 2, groups_by="two-best", **options).topk_ids.tolist() == [[2, 3]]
    bias = torch.tensor([0.0, 0, 0, 0, 3, 0])
    biased = kernels.topk_gate(logits, 2, groups_by="two-best", bias=bias, **options)
    assert biased.topk_ids.tolist() == [[4, 5]]
    # The bias chooses and does not weigh.
    torch.testing.assert_close(biased.topk_weights, logits.softmax(1)[:, 4:])


def test_ties_go_to_the_lower_expert():
    assert kernels.topk_gate(torch.zeros(1, 300), 3).topk_ids.tolist() == [[0, 1, 2]]


# recipe -> the same gate in the primitive's words; the recipes' own defaults, clipped to 24 experts
RECIPES = {
    "topk-softmax": {"renormalize": True},
    "mixtral": {"renormalize": True},
    "qwen3": {"renormalize": True},
    "olmoe": {},
    "gpt-oss": {"select_on": "logits", "renormalize": True},
    "deepseek-moe": {},
    "deepseek-v2": {"num_groups": 8, "keep_groups": 3, "scale": 16.0},
    "deepseek-v3": {
        "activation": "sigmoid",
        "num_groups": 8,
        "keep_groups": 4,
        "groups_by": "two-best",
        "renormalize": True,
        "scale": 2.5,
    },
    "kimi-k2": {"activation": "sigmoid", "renormalize": True, "scale": 2.827},
    "deepseek-v4": {"activation": "sqrt-softplus", "renormalize": True, "scale": 1.5},
    "llama4": {"activation": "sigmoid", "select_on": "logits"},
}


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_the_gate_of_the_recipe(name):
    generator = torch.Generator().manual_seed(0)
    K = 1 if name == "llama4" else 6
    router = gatelab.create_router(name, hidden_size=16, num_experts=24, top_k=K)
    bias = None
    for part in router.balance:
        if hasattr(part, "bias"):
            bias = part.bias.copy_(0.1 * torch.randn(24, generator=generator))
    mask = torch.rand(40, generator=generator) < 0.8
    routing = router(torch.randn(40, 16, generator=generator), token_mask=mask)
    chosen = kernels.topk_gate(routing.router_logits, K, bias=bias, token_mask=mask, **RECIPES[name])
    weights, ids = routing.topk()
    torch.testing.assert_close(chosen.topk_weights, weights)
    assert torch.equal(chosen.topk_ids, ids)
    assert torch.equal(chosen.tokens_per_expert, routing.tokens_per_expert)
    expected = torch.where(mask, routing.router_logits.logsumexp(1), 0)
    torch.testing.assert_close(chosen.logsumexp, expected)


def test_hugging_face_deepseek_v3():
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

    config = DeepseekV3Config(hidden_size=8, n_routed_experts=16, num_experts_per_tok=4, n_group=4, topk_group=2)
    theirs = DeepseekV3TopkRouter(config)
    generator = torch.Generator().manual_seed(0)
    nn.init.normal_(theirs.weight, generator=generator)
    theirs.e_score_correction_bias.copy_(0.1 * torch.randn(16, generator=generator))
    logits, weights, ids = theirs(torch.randn(50, 8, generator=generator))
    chosen = kernels.topk_gate(
        logits,
        4,
        activation="sigmoid",
        bias=theirs.e_score_correction_bias,
        num_groups=4,
        keep_groups=2,
        groups_by="two-best",
        renormalize=True,
        scale=config.routed_scaling_factor,
    )
    # Theirs are in no order.
    dense = [torch.zeros(50, 16).scatter(1, i, w) for i, w in ((ids, weights), chosen[1::-1])]
    torch.testing.assert_close(dense[1], dense[0])


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "sqrt-softplus"])
def test_gradients_numerically(activation):
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([1, 1, 0, 1])

    def run(logits):
        chosen = kernels.topk_gate(logits, 3, activation=activation, renormalize=True, token_mask=mask)
        return chosen.topk_weights, chosen.logsumexp

    assert torch.autograd.gradcheck(run, logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logits_TE": torch.zeros(3)}, "logits_TE"),
        ({"logits_TE": torch.zeros(3, 4, dtype=torch.int64)}, "logits_TE"),
        ({"top_k": 5}, "top_k=5"),
        ({"top_k": 0}, "top_k=0"),
        ({"activation": "tanh"}, "activation='tanh'"),
        ({"select_on": "noise"}, "select_on='noise'"),
        ({"groups_by": "mean"}, "groups_by='mean'"),
        ({"num_groups": 3}, "num_groups=3"),
        ({"num_groups": 4, "keep_groups": 1}, "keep_groups=1"),
        ({"num_groups": 2, "keep_groups": 3}, "keep_groups=3"),
        ({"bias": torch.zeros(3)}, "bias has shape"),
        ({"token_mask": torch.ones(4)}, "token_mask has shape"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        kernels.topk_gate(**{"logits_TE": torch.zeros(3, 4), "top_k": 2} | arguments)
