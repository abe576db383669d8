"""Published gates against transformers' own blocks, as dense (T, E) weights: ids come back unsorted there."""

import functools

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    DbrxConfig,
    DeepseekV2Config,
    DeepseekV3Config,
    DeepseekV4Config,
    GptOssConfig,
    HunYuanMoEV1Config,
    KimiLinearConfig,
    Llama4TextConfig,
    MiniMaxConfig,
    MixtralConfig,
    OlmoeConfig,
    PhimoeConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)
from transformers.models.dbrx.modeling_dbrx import DbrxFFN
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HashRouter, DeepseekV4TopKRouter
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter
from transformers.models.hunyuan_v1_moe.modeling_hunyuan_v1_moe import HunYuanMoEV1Gate
from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearTopkRouter
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe
from transformers.models.minimax.modeling_minimax import MiniMaxTopKRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter, load_balancing_loss_func
from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter
from transformers.models.phimoe.modeling_phimoe import PhimoeTopKRouter
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeTopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

import gatelab

D, E, T = 16, 8, 64


def hidden(seed: int = 0) -> Tensor:
    return torch.randn(T, D, generator=torch.Generator().manual_seed(seed)) * 2 + 0.3


def randomized(module: nn.Module) -> nn.Module:
    """Their gates start at 0 or at nothing."""
    g = torch.Generator().manual_seed(7)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.randn(tensor.shape, generator=g) * 0.3
    return module.eval()


def dense(ids: Tensor, weights: Tensor) -> Tensor:
    return torch.zeros(ids.shape[0], E).scatter(1, ids, weights)


V2 = {"n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0}
GATES = {
    "mixtral": (MixtralTopKRouter, MixtralConfig(hidden_size=D, num_local_experts=E, num_experts_per_tok=2)),
    "qwen1.5-moe": (
        Qwen2MoeTopKRouter,
        Qwen2MoeConfig(hidden_size=D, num_experts=E, num_experts_per_tok=4, norm_topk_prob=False),
    ),
    "qwen3": (
        Qwen3MoeTopKRouter,
        Qwen3MoeConfig(hidden_size=D, num_experts=E, num_experts_per_tok=5, norm_topk_prob=True),
    ),
    "olmoe": (
        OlmoeTopKRouter,
        OlmoeConfig(hidden_size=D, num_experts=E, num_experts_per_tok=5, norm_topk_prob=False),
    ),
    "minimax-01": (MiniMaxTopKRouter, MiniMaxConfig(hidden_size=D, num_local_experts=E, num_experts_per_tok=2)),
    "gpt-oss": (GptOssTopKRouter, GptOssConfig(hidden_size=D, num_local_experts=E, num_experts_per_tok=4)),
    "deepseek-moe": (
        DeepseekV2TopkRouter,
        DeepseekV2Config(
            hidden_size=D, num_attention_heads=2, n_routed_experts=E, num_experts_per_tok=3, topk_method="greedy"
        ),
    ),
    "deepseek-v2": (
        DeepseekV2TopkRouter,
        DeepseekV2Config(hidden_size=D, num_attention_heads=2, n_routed_experts=E, num_experts_per_tok=3, **V2),
    ),
    "deepseek-v3": (
        DeepseekV3TopkRouter,
        DeepseekV3Config(hidden_size=D, n_routed_experts=E, num_experts_per_tok=3, n_group=4, topk_group=2),
    ),
    "kimi-k2": (
        KimiLinearTopkRouter,
        KimiLinearConfig(
            hidden_size=D,
            num_local_experts=E,
            num_experts_per_tok=3,
            n_group=1,
            topk_group=1,
            norm_topk_prob=True,
            routed_scaling_factor=2.827,
        ),
    ),
    "deepseek-v4": (
        DeepseekV4TopKRouter,
        DeepseekV4Config(hidden_size=D, n_routed_experts=E, num_experts_per_tok=3),
    ),
}
OPTIONS = {name: {"num_groups": 4, "keep_groups": 2} for name in ("deepseek-v2", "deepseek-v3")}


@pytest.mark.parametrize("name", GATES)
def test_weights(name):
    make, config = GATES[name]
    theirs = randomized(make(config))
    ours = gatelab.create_router(name, D, E, config.num_experts_per_tok, **OPTIONS.get(name, {})).eval()
    renamed = {"weight": "score.weight", "bias": "score.bias", "e_score_correction_bias": "balance.0.bias"}
    ours.load_state_dict({renamed[key]: value for key, value in theirs.state_dict().items()})
    x = hidden()
    _logits, weights, ids = theirs(x)
    torch.testing.assert_close(ours(x).to_dense(), dense(ids, weights))
    assert ours.guarantees.experts_per_token == config.num_experts_per_tok


def test_dbrx():
    config = DbrxConfig(
        d_model=D, ffn_config={"hidden_size": D, "ffn_hidden_size": D, "moe_num_experts": E, "moe_top_k": 4}
    )
    theirs = randomized(DbrxFFN(config))
    ours = gatelab.create_router("dbrx", D, E)
    ours.load_state_dict({"score.weight": theirs.router.layer.weight})
    weights, ids = theirs.route_tokens_to_experts(theirs.router(hidden()[None]))
    torch.testing.assert_close(ours(hidden()).to_dense(), dense(ids, weights))


def test_hunyuan_large():
    # transformers' Hunyuan renormalises, which makes the single weight of top-1 a 1; ours is the released Large's
    theirs = randomized(HunYuanMoEV1Gate(HunYuanMoEV1Config(hidden_size=D, num_experts=E, moe_topk=1)))
    ours = gatelab.create_router("hunyuan-large", D, E).eval()
    ours.load_state_dict({"score.weight": theirs.wg.weight})
    routing = ours(hidden())
    _logits, weights, ids = theirs(hidden())
    torch.testing.assert_close(routing.to_dense().sign(), dense(ids, weights))
    torch.testing.assert_close(routing.to_dense().sum(1), routing.router_logits.softmax(1).amax(1))


@pytest.mark.parametrize("top_k", [1, 2])
def test_llama4_layer(top_k):
    # the whole layer, as the weight multiplies the expert's input
    config = Llama4TextConfig(
        hidden_size=D, intermediate_size=24, num_local_experts=E, num_experts_per_tok=top_k, hidden_act="silu"
    )
    theirs = randomized(Llama4TextMoe(config))
    ours = gatelab.MoE(
        gatelab.create_router("llama4", D, E, top_k), gatelab.Experts(E, D, 24), gatelab.SharedExpert(D, 24)
    ).eval()
    shared = theirs.shared_expert
    ours.load_state_dict(
        {
            "router.score.weight": theirs.router.weight,
            "experts.gate_up_proj": theirs.experts.gate_up_proj.transpose(1, 2),
            "experts.down_proj": theirs.experts.down_proj.transpose(1, 2),
            "shared.gate_up_proj.weight": torch.cat([shared.gate_proj.weight, shared.up_proj.weight]),
            "shared.down_proj.weight": shared.down_proj.weight,
        }
    )
    y, _routing = ours(hidden())
    # σ differs in its last bit from torch's, and with it every input of the expert, whose sums cancel in part.
    torch.testing.assert_close(y, theirs(hidden())[0], rtol=1e-5, atol=2e-5)


def test_deepseek_v4_hash_layer():
    config = DeepseekV4Config(hidden_size=D, n_routed_experts=E, num_experts_per_tok=3, vocab_size=50)
    theirs = randomized(DeepseekV4HashRouter(config))
    torch.manual_seed(3)
    ours = gatelab.create_router("deepseek-v4", D, E, 3, hashed=True, vocab_size=50).eval()
    theirs.tid2eid.data = ours.select.table
    ours.score.weight.data = theirs.weight.data
    token_ids = torch.randint(50, (T,))
    _logits, weights, ids = theirs(hidden(), token_ids)
    torch.testing.assert_close(ours(hidden(), token_ids=token_ids).to_dense(), dense(ids, weights))


def phimoe(training: bool) -> tuple[nn.Module, gatelab.Router]:
    config = PhimoeConfig(hidden_size=D, num_local_experts=E, num_experts_per_tok=2, router_jitter_noise=0.4)
    theirs = randomized(PhimoeTopKRouter(config)).train(training)
    ours = gatelab.create_router("grin", D, E, eps=0.4).train(training)
    ours.load_state_dict({"score.weight": theirs.weight})
    return theirs, ours


@pytest.mark.parametrize("training", [True, False])
def test_grin(training, monkeypatch):
    theirs, ours = phimoe(training)
    # For its second pick it draws uniform numbers and then others in their place: one draw too many to compare.
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda tensor: tensor)
    for seed in range(5):
        x = hidden(seed)
        torch.manual_seed(seed)
        _logits, weights, ids = theirs(x)
        torch.manual_seed(seed)
        # it writes 1/3 as 0.3333
        torch.testing.assert_close(ours(x).to_dense(), dense(ids, weights), rtol=2e-4, atol=1e-6)


def test_grin_gradient(monkeypatch):
    theirs, ours = phimoe(training=True)
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda tensor: tensor)
    gradients = []
    for router in (theirs, ours):
        x = hidden().requires_grad_()
        torch.manual_seed(0)
        if router is theirs:
            _logits, weights, ids = theirs(x)
            out = dense(ids, weights)
        else:
            out = ours(x).to_dense()
        (out * torch.arange(1.0, E + 1)).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


def test_the_loss_of_hugging_face_is_k_times_ours():
    x, k = hidden(), 3
    # equal probabilities 1/E: Σ_i (share of tokens that chose i) · 1/E · E = K, whoever was chosen
    assert load_balancing_loss_func((torch.zeros(T, E),), E, k) == k
    for name in ("mixtral", "qwen1.5-moe", "olmoe"):
        router = gatelab.create_router(name, D, E, k, switch_coefficient=1.0)
        mask = torch.rand(T, generator=torch.Generator().manual_seed(1)) < 0.7
        for m in (None, mask):
            routing = router(x, token_mask=m)
            logits = torch.where(
                torch.ones(T, 1, dtype=torch.bool) if m is None else m[:, None], x @ router.score.weight.T, 0
            )
            theirs = load_balancing_loss_func((logits,), E, k, None if m is None else m[None])
            torch.testing.assert_close(k * routing.losses["switch"], theirs)


@pytest.mark.parametrize("name", ["grok-1", "switch", "x-moe", "qwen1.5-moe", "olmoe", "deepseek-moe"])
def test_probabilities_that_are_not_renormalised(name):
    # softmax then top-k then nothing: the weights are those of the full softmax, and sum to less than 1
    router = gatelab.create_router(name, D, E, 2).eval()
    routing = router(hidden())
    p = routing.router_logits.softmax(1)
    torch.testing.assert_close(routing.to_dense(), torch.where(routing.to_dense() > 0, p, 0))
    assert bool((routing.to_dense().sum(1) < 1).all())


@pytest.mark.parametrize(
    ("name", "reference"), [("mixtral", "dbrx"), ("mixtral", "topk-softmax"), ("yuan2-m32", "attention")]
)
def test_two_ways_to_write_the_same(name, reference):
    first, second = (gatelab.create_router(n, D, E, 2).eval() for n in (name, reference))
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(first(hidden()).to_dense(), second(hidden()).to_dense())


@pytest.mark.parametrize(
    "name", [*GATES, "dbrx", "llama4", "grok-1", "switch", "v-moe", "x-moe", "mlp", "hadamard", "grin"]
)
def test_float32_is_enough(name):
    # the same gate in float64 chooses the same experts and weighs them the same
    torch.manual_seed(0)
    make = functools.partial(gatelab.create_router, name, D, E)
    low, wide = make().eval(), make().eval()
    wide.load_state_dict(low.state_dict())
    wide = wide.double()
    wide.gate_dtype = torch.float64
    torch.testing.assert_close(
        low(hidden()).to_dense(), wide(hidden().double()).to_dense().float(), rtol=1e-4, atol=1e-5
    )


# name: experts and experts per token as published, and what describes the rest
PUBLISHED = {
    "switch": (128, 1, ["capacity_factor=1.25, eval_capacity_factor=2.0", "eps=0.01", "coefficient=0.01"]),
    "gshard": (2048, 2, ["capacity_factor=1.0, eval_capacity_factor=None", "threshold=0.5"]),
    "noisy-topk": (256, 4, ["coefficient=0.1, sparse=True", "coefficient=0.1, k=4, excluding=True"]),
    "st-moe": (64, 2, ["capacity_factor=1.25, eval_capacity_factor=2.0", "threshold=0.2", "coefficient=0.001"]),
    "v-moe": (32, 2, ["capacity_factor=1.05, eval_capacity_factor=1.05", "std=0.03125", "coefficient=0.005"]),
    "mixtral": (8, 2, ["coefficient=0.02"]),
    "grok-1": (8, 2, []),
    "dbrx": (16, 4, ["coefficient=0.05"]),
    "qwen1.5-moe": (60, 4, ["coefficient=0.001"]),
    "qwen3": (128, 8, ["coefficient=0.001, scope='global-batch'"]),
    "olmoe": (64, 8, ["coefficient=0.01, scope", "ZLoss(coefficient=0.001)"]),
    "deepseek-moe": (64, 6, ["coefficient=0.001, scope='sequence'"]),
    "deepseek-v2": (160, 6, ["num_groups=8, keep_groups=3", "16.0", "coefficient=0.003", "coefficient=0.05"]),
    "deepseek-v3": (
        256,
        8,
        ["num_groups=8, keep_groups=4", "2.5", "rate=0.001", "coefficient=0.0001, scope='sequence'"],
    ),
    "deepseek-v4": (256, 6, ["1.5", "rate=0.001"]),
    "kimi-k2": (384, 8, ["2.827", "rate=0.001"]),
    "yuan2-m32": (32, 2, []),
    "llama4": (128, 1, ["coefficient=0.001"]),
    "gpt-oss": (128, 4, []),
    "hunyuan-large": (16, 1, []),
    "minimax-01": (32, 2, ["scope='global-batch'"]),
    "x-moe": (32, 1, ["projection=256"]),
    "grin": (16, 2, ["k=2, eps=0.01", "scope='global-batch'"]),
    "mlp": (8, 2, []),
    "hadamard": (8, 2, []),
    "hash": (16, 1, ["vocab_size=8008"]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_defaults_are_those_published(name):
    num_experts, top_k, words = PUBLISHED[name]
    router = gatelab.create_router(name, 64, num_experts, device="meta")
    assert router.eval().guarantees.experts_per_token == top_k
    for word in words:
        assert word in f"{router}", f"{word!r} is not in {router}"


@pytest.mark.parametrize("name", [*PUBLISHED, "mixture-of-depths"])
def test_descriptions(name):
    text = str(gatelab.describe_router(name, 64, 8))
    assert "Source: " in text
    assert "In training: causal=" in text
