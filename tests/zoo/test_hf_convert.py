"""`from_hf` on blocks: same outputs, same experts, same gradients; everything else is refused by name."""

import re

import pytest
import torch
from hf_blocks import NAMED, tiny_block
from torch import Tensor, nn
from torch.nn import functional as F

import gatelab
from gatelab import Experts, MoE, Router, SharedExpert
from gatelab.routers.balance import InputJitter, ProportionalBias, SignBias
from gatelab.routers.select import GroupLimitedTopK, HashTable, SparseMixer, TopK
from gatelab.routers.weight import Scale
from gatelab.zoo import UnsupportedBlock, from_hf
from gatelab.zoo.activations import ClampedSwiGLU
from gatelab.zoo.hf.parts import FixedCapacity, ScaledScore, ZeroedGroupsTopK
from gatelab.zoo.hf.precision import Rounded, RoundedSelect
from gatelab.zoo.hf.read import read
from gatelab.zoo.hf.wrappers import Between

# Other settings of a configuration that change what the block is.
VARIANTS = [
    ("qwen2_moe", "Qwen2MoeSparseMoeBlock", {"norm_topk_prob": True, "hidden_act": "gelu_pytorch_tanh"}),
    ("qwen3_moe", "Qwen3MoeSparseMoeBlock", {"num_experts_per_tok": 1, "hidden_act": "gelu"}),
    ("qwen3_moe", "Qwen3MoeSparseMoeBlock", {"num_experts_per_tok": 8, "norm_topk_prob": True}),
    ("mixtral", "MixtralSparseMoeBlock", {"num_experts_per_tok": 1}),
    ("mixtral", "MixtralSparseMoeBlock", {"num_local_experts": 32, "hidden_size": 32}),  # E = D
    ("deepseek_v2", "DeepseekV2Moe", {"topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0}),
    ("deepseek_v3", "DeepseekV3MoE", {"n_group": 4, "topk_group": 2, "norm_topk_prob": False}),
    ("deepseek_v3", "DeepseekV3MoE", {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0}),
    ("axk2", "AXK2MoE", {"n_group": None}),
    ("cohere2_moe", "Cohere2MoeSparseMoeBlock", {"expert_selection_fn": "sigmoid", "norm_topk_prob": True}),
    ("cohere2_moe", "Cohere2MoeSparseMoeBlock", {"expert_selection_fn": "sigmoid", "num_shared_experts": 0}),
    ("lfm2_moe", "Lfm2MoeSparseMoeBlock", {"use_expert_bias": False, "norm_topk_prob": False}),
    ("laguna", "LagunaSparseMoeBlock", {"moe_router_logit_softcapping": 3.0, "moe_routed_scaling_factor": 2.5}),
    ("longcat_flash", "LongcatFlashMoE", {"router_bias": True, "zero_expert_num": 0}),
    ("ernie4_5_moe", "Ernie4_5_MoeSparseMoeBlock", {"use_bias": True, "num_experts_per_tok": 1}),
    ("ernie4_5_moe", "Ernie4_5_MoeSparseMoeBlock", {"moe_num_shared_experts": 0, "moe_norm_min": 0.5}),
    ("ernie4_5_moe", "Ernie4_5_MoeSparseMoeBlock", {"num_experts_per_tok": 8}),  # a bias that only reorders
    ("switch_transformers", "SwitchTransformersSparseMLP", {"expert_capacity": 1, "router_bias": True}),
    ("switch_transformers", "SwitchTransformersSparseMLP", {"expert_capacity": 64}),
    ("dbrx", "DbrxFFN", {"moe_normalize_expert_weights": 3.0}),
    ("dbrx", "DbrxFFN", {"moe_normalize_expert_weights": None, "ffn_act_fn": {"name": "relu2"}}),
    ("nemotron_h", "NemotronHMoE", {"moe_latent_size": 12}),
    ("llama4", "Llama4TextMoe", {"num_experts_per_tok": 1}),
    ("phimoe", "PhimoeSparseMoeBlock", {"router_jitter_noise": 0.3, "input_jitter_noise": 0.1}),
    ("step3p7", "Step3p7SparseMoeBlock", {"swiglu_limits": [0.0, 0.3], "swiglu_limits_shared": [0.0, 0.2]}),
    ("gpt_oss", "GptOssMLP", {"swiglu_limit": 0.2, "num_experts_per_tok": 1}),
    ("flint", "FlintSparseMoeBlock", {"norm_topk_prob": False}),
]


def recorded(block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """What a block returns, and the dense (T, E) weights its experts are given, read in the plainest way."""
    given = []
    hook = block.experts.register_forward_pre_hook(
        lambda _, args, kwargs: given.append((*args, *kwargs.values())), with_kwargs=True
    )
    out = block(x.clone())
    hook.remove()
    y = (out[0] if isinstance(out, tuple) else out).reshape(x.shape)
    hidden, *rest = given[0]
    if not rest:  # Llama 4: every token for every expert, times its weight
        T = x.shape[:-1].numel()
        return y, (hidden.view(-1, T, x.shape[-1]) / x.flatten(0, 1)).median(-1).values.T
    ids = next(a for a in rest if not a.is_floating_point())
    weights = next(a for a in rest if a.is_floating_point())
    if ids.dim() == 3:  # Switch: a mask instead of ids
        return y, ids[:, 0] * weights
    return y, weights.new_zeros(len(ids), int(ids.max()) + 1).scatter_add(1, ids, weights)


def padded(dense: Tensor, columns: int) -> Tensor:
    return F.pad(dense, (0, columns - dense.shape[1]))


@pytest.mark.parametrize(("model", "name", "options"), [(*named, {}) for named in NAMED] + VARIANTS)
def test_a_converted_block_gives_the_same_outputs_and_the_same_experts(model, name, options):
    block = tiny_block(model, name, seed=1, **options)
    before = {n: t.clone() for n, t in block.state_dict().items()}
    moe = from_hf(block)
    assert isinstance(moe, MoE)
    assert isinstance(moe.router, Router)
    for seed, scale in enumerate((0.05, 1.0, 3.0, 10.0)):
        x = scale * torch.randn(3, 11, 32, generator=torch.Generator().manual_seed(100 + seed))
        with torch.no_grad():
            wanted, dense = recorded(block, x)
            y, routing = moe(x)
        assert y.shape == x.shape
        assert (y - wanted).abs().max() <= 1e-5 * wanted.abs().max()
        # A scale that the block applies after its experts is in our weights.
        ours, theirs = routing.to_dense(), padded(dense, moe.router.num_experts)
        factor = 1.0 if torch.allclose(ours.sum(), theirs.sum(), rtol=1e-4) else ours.max() / theirs.max()
        assert torch.equal(theirs != 0, ours != 0)
        assert torch.allclose(ours, factor * theirs, rtol=1e-4, atol=1e-6)
    assert not block.training
    assert not moe.training
    assert all(torch.equal(before[n], t) for n, t in block.state_dict().items())


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("mixtral", "MixtralSparseMoeBlock"),
        ("qwen2_moe", "Qwen2MoeSparseMoeBlock"),
        ("gpt_oss", "GptOssMLP"),
        ("llama4", "Llama4TextMoe"),
        ("deepseek_v3", "DeepseekV3MoE"),
        ("longcat_flash", "LongcatFlashMoE"),
        ("nemotron_h", "NemotronHMoE"),
        ("muse_spark", "MuseSparkMoE"),
        ("zaya", "ZayaSparseMoeBlock"),
    ],
)
def test_gradients_are_the_same_to_the_input_and_to_every_parameter(model, name):
    block = tiny_block(model, name)
    moe = from_hf(block)
    x = torch.randn(2, 9, 32)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    out = block(inputs[0] * 1.0)
    (out[0] if isinstance(out, tuple) else out).square().sum().backward()
    moe(inputs[1])[0].square().sum().backward()
    assert torch.allclose(inputs[0].grad, inputs[1].grad, rtol=1e-3, atol=1e-4)
    theirs = {n: p.grad for n, p in block.named_parameters() if p.grad is not None}
    ours = {n: p.grad for n, p in moe.named_parameters() if p.grad is not None}
    compared = 0
    for link in read(block).links:
        if link.ours in ours and all(name in theirs for name in link.theirs):
            wanted = link.pull(theirs)
            assert torch.allclose(ours[link.ours], wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max())), link.ours
            compared += 1
    assert compared >= 3  # at least the gate and both projections


def test_the_recipe_names_what_the_block_does():
    v3 = from_hf(tiny_block("deepseek_v3", "DeepseekV3MoE", n_group=4, topk_group=2))
    assert isinstance(v3.router.select, GroupLimitedTopK)
    assert (v3.router.select.k, v3.router.select.num_groups, v3.router.select.keep_groups) == (3, 4, 2)
    assert [type(part).__name__ for part in v3.router.weight.parts] == ["Renormalize", "Scale"]
    assert v3.router.weight.parts[1].factor == 2.5
    assert isinstance(v3.router.balance[0], SignBias)
    assert v3.router.activation is torch.sigmoid
    assert isinstance(v3.shared, SharedExpert)
    gpt = from_hf(tiny_block("gpt_oss", "GptOssMLP"))
    assert gpt.experts.activation == ClampedSwiGLU(limit=7.0, alpha=1.702, offset=1.0)
    assert gpt.router.score.bias is not None
    assert gpt.router.balance == nn.ModuleList() or len(gpt.router.balance) == 0
    longcat = from_hf(tiny_block("longcat_flash", "LongcatFlashMoE"))
    assert longcat.router.zero_computation == ("identity",) * 4
    assert longcat.experts.num_experts == 8
    assert isinstance(longcat.router.balance[0], ProportionalBias)
    # more choices than the 8 real experts
    assert from_hf(tiny_block("longcat_flash", "LongcatFlashMoE", num_experts_per_tok=9)).router.select.k == 9
    assert from_hf(tiny_block("llama4", "Llama4TextMoe")).router.weights_on_input
    phi = from_hf(tiny_block("phimoe", "PhimoeSparseMoeBlock", router_jitter_noise=0.05, input_jitter_noise=0.2))
    assert isinstance(phi.router.select, SparseMixer)
    assert phi.router.select.eps == 0.05
    assert isinstance(phi.router.balance[0], InputJitter)
    assert phi.router.balance[0].eps == 0.2
    switch = from_hf(tiny_block("switch_transformers", "SwitchTransformersSparseMLP"))
    assert isinstance(switch.router.select, FixedCapacity)
    assert switch.router.select.capacity == 3
    assert isinstance(from_hf(tiny_block("deepseek_v4", "DeepseekV4SparseMoeBlock")).router.select, HashTable)
    assert isinstance(from_hf(tiny_block("axk2", "AXK2MoE")).router.select, ZeroedGroupsTopK)
    assert isinstance(
        from_hf(tiny_block("muse_spark", "MuseSparkMoE", output_multiplier=3.0)).router.score, ScaledScore
    )
    assert isinstance(from_hf(tiny_block("axk1", "AXK1MoE")).experts, Between)
    qwen = from_hf(tiny_block("qwen2_moe", "Qwen2MoeSparseMoeBlock"))
    assert isinstance(qwen.experts, Experts)
    assert qwen.experts.activation == "swiglu"
    assert qwen.shared.output_gate is not None
    assert isinstance(qwen.router.select, TopK)
    # scaled by k inside and by 1/k outside, which is nothing
    privacy = from_hf(tiny_block("openai_privacy_filter", "OpenAIPrivacyFilterMLP"))
    assert not any(isinstance(part, Scale) for part in privacy.router.weight.parts)


def test_dtype_device_mode_and_what_learns_are_kept_and_the_generator_is_not_touched():
    block = tiny_block("afmoe", "AfmoeSparseMoeBlock").train()
    block.experts.down_proj.requires_grad_(False)
    state = torch.get_rng_state()
    moe = from_hf(block)
    assert torch.equal(state, torch.get_rng_state())
    assert moe.training
    assert block.training
    assert not moe.experts.down_proj.requires_grad
    assert moe.experts.gate_up_proj.requires_grad
    assert moe.router.score.weight.data_ptr() != block.router.gate.weight.data_ptr()
    wide = from_hf(tiny_block("mixtral", "MixtralSparseMoeBlock").double())
    assert {p.dtype for p in wide.parameters()} == {torch.float64}


def test_a_gate_in_half_precision_is_told_from_one_in_float32():
    half = tiny_block("mixtral", "MixtralSparseMoeBlock").to(torch.bfloat16)
    moe = from_hf(half)
    assert moe.router.gate_dtype == torch.bfloat16
    assert {p.dtype for p in moe.parameters()} == {torch.bfloat16}
    float32 = from_hf(tiny_block("deepseek_v3", "DeepseekV3MoE").to(torch.bfloat16))  # casts to float32 before W x
    assert float32.router.gate_dtype == torch.float32
    mixed = tiny_block("hunyuan_v1_moe", "HunYuanMoEV1Moe").to(torch.bfloat16)
    mixed.gate.wg.float()  # as the class makes it
    moe = from_hf(mixed)
    assert moe.router.score.weight.dtype == torch.float32
    assert moe.experts.down_proj.dtype == torch.bfloat16
    x = torch.randn(2, 64, 32).to(torch.bfloat16)
    with torch.no_grad():
        wanted, dense = recorded(half, x)
        y, routing = from_hf(half)(x)
    assert torch.equal(dense != 0, routing.to_dense() != 0)
    assert torch.allclose(y, wanted, atol=0.03 * float(wanted.abs().max()))


def test_a_gate_that_rounds_its_scores_before_it_compares_them_ties_where_the_block_does():
    # Switch casts its probabilities to the model's dtype: near 1/8, bfloat16 has steps of 1/1024, and many tie.
    block = tiny_block("switch_transformers", "SwitchTransformersSparseMLP", expert_capacity=64)
    with torch.no_grad():
        block.router.classifier.weight.mul_(0.1)
    moe = from_hf(block.to(torch.bfloat16))
    assert isinstance(moe.router.activation, Rounded)
    x = torch.randn(2, 60, 32, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    with torch.no_grad():
        wanted, dense = recorded(block, x)
        y, routing = moe(x)
        exact = (x.float().flatten(0, 1) @ moe.router.score.weight.float().T).argmax(1)
    assert torch.equal(dense != 0, routing.to_dense() != 0)
    assert (y - wanted).abs().max() <= 0.03 * wanted.abs().max()
    assert bool((routing.topk()[1][:, 0] != exact).any())  # without rounding some would go elsewhere


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("model", "name", "options"),
    [
        ("mistral4", "Mistral4MoE", {"num_local_experts": 16, "n_group": 4, "topk_group": 2}),  # sums of groups round
        ("lfm2_moe", "Lfm2MoeSparseMoeBlock", {"num_experts": 24}),  # biased scores do
    ],
)
def test_a_gate_that_compares_in_half_precision_ties_where_the_block_does(model, name, options, dtype):
    block = tiny_block(model, name, **options)
    with torch.no_grad():
        block.gate.weight.mul_(0.1)
        for bias in block.buffers():
            bias.mul_(0.1)
    moe = from_hf(block.to(dtype))
    assert isinstance(moe.router.select, RoundedSelect)
    x = 0.3 * torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.no_grad():
        _, dense = recorded(block, x)
        ours = moe(x)[1].to_dense()
        moe.router.select = moe.router.select.select
        exact = moe(x)[1].to_dense()
    theirs = padded(dense, ours.shape[1])
    assert torch.equal(theirs != 0, ours != 0)
    assert not torch.equal(theirs != 0, exact != 0)  # without rounding some would go elsewhere


def test_groups_that_hardly_ever_close_are_read_all_the_same():
    # 6 of 8 groups of two stay open: the best expert's is among them but for one token in a thousand.
    options = {"n_routed_experts": 16, "num_local_experts": 16, "n_group": 8, "topk_group": 6, "num_experts_per_tok": 1}
    moe = from_hf(tiny_block("glm4_moe_lite", "Glm4MoeLiteMoE", seed=6, hidden_size=64, **options))
    assert isinstance(moe.router.select, GroupLimitedTopK)
    assert (moe.router.select.num_groups, moe.router.select.keep_groups) == (8, 6)
    softmax = from_hf(tiny_block("mistral4", "Mistral4MoE", **options))
    assert (softmax.router.select.num_groups, softmax.router.select.keep_groups) == (8, 6)
    options |= {"num_local_experts": 24, "topk_group": 7, "num_experts_per_tok": 4, "hidden_size": 16}
    wide = from_hf(tiny_block("mistral4", "Mistral4MoE", seed=1, **options))  # more experts than features
    assert (wide.router.select.num_groups, wide.router.select.keep_groups) == (8, 7)


def test_a_capacity_that_short_sequences_never_reach_is_kept():
    block = tiny_block("switch_transformers", "SwitchTransformersSparseMLP", expert_capacity=40)
    moe = from_hf(block)
    x = torch.randn(2, 1, 32).expand(-1, 50, -1)
    with torch.no_grad():
        wanted, _ = recorded(block, x)
        y, routing = moe(x)
    assert int(routing.tokens_per_expert.sum()) == 2 * 40
    assert torch.allclose(y, wanted, atol=1e-6)


def test_a_selection_bias_of_zero_keeps_its_place():
    block = tiny_block("deepseek_v3", "DeepseekV3MoE")
    block.gate.e_score_correction_bias.zero_()
    block.gate.weight.data.zero_()  # every token ties
    moe = from_hf(block)
    assert torch.equal(moe.router.balance[0].bias, torch.zeros(8))


def test_token_ids_and_the_previous_layer_are_handed_on():
    block = tiny_block("deepseek_v4", "DeepseekV4SparseMoeBlock")
    moe = from_hf(block)
    x, ids = torch.randn(2, 7, 32), torch.randint(64, (2, 7))
    assert torch.allclose(moe(x, token_ids=ids)[0], block(x, input_ids=ids), atol=1e-5)
    first, second = (tiny_block("zaya", "ZayaSparseMoeBlock", seed=s) for s in (1, 2))
    ours = [from_hf(first), from_hf(second)]
    y, state = first(x)
    wanted, _ = second(y, state)
    y, routing = ours[0](x)
    got, _ = ours[1](y, previous=routing)
    assert torch.allclose(got, wanted, atol=1e-5)
    # The state matters: without it the outputs, of size 1e-3, move by more than rounding.
    assert not torch.allclose(ours[1](y)[0], got, rtol=1e-4, atol=1e-8)


class Oddity(nn.Module):
    """A Mixtral block with something more."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.gate, self.experts = block.gate, block.experts
        self.extra = nn.Parameter(torch.ones(5))

    def forward(self, hidden_states: Tensor) -> Tensor:
        rows = hidden_states.view(-1, hidden_states.shape[-1])
        _, weights, ids = self.gate(rows)
        return self.after(self.experts(rows, ids, self.weigh(weights)).view(hidden_states.shape))

    def weigh(self, weights: Tensor) -> Tensor:
        return weights

    def after(self, y: Tensor) -> Tensor:
        return y


class SquareRoots(Oddity):
    def weigh(self, weights: Tensor) -> Tensor:
        return weights.sqrt()


class Tanh(Oddity):
    def after(self, y: Tensor) -> Tensor:
        return y.tanh()


class Scaled(Oddity):
    """The factor is 1 now: only changing it shows that it matters."""

    def after(self, y: Tensor) -> Tensor:
        return y * self.extra[0]


class Softened(Oddity):
    """Differs only where a weight is nearly 1: on the batches that tell formulas apart it does not show."""

    def weigh(self, weights: Tensor) -> Tensor:
        return torch.where(weights > 0.98, 0.97, weights) if len(weights) == 32 else weights


class LastExperts(Oddity):
    def forward(self, hidden_states: Tensor) -> Tensor:
        rows = hidden_states.view(-1, hidden_states.shape[-1])
        logits, _, _ = self.gate(rows)
        weights, ids = logits.softmax(-1).topk(2, largest=False)
        return self.experts(rows, ids, weights).view(hidden_states.shape)


@pytest.mark.parametrize(
    ("oddity", "reason"),
    [
        (SquareRoots, "how it turns hidden states into weights is not understood"),
        (Tanh, "its output is no sum of its experts' and its other children's outputs"),
        (Scaled, "extra changes its output and has no place in the conversion"),
        (Softened, "its output differs by"),
        (LastExperts, "its weights are understood, but not which experts it chooses"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(oddity, reason):
    block = oddity(tiny_block("mixtral", "MixtralSparseMoeBlock")).eval()
    with pytest.raises(UnsupportedBlock, match=f"^{oddity.__name__} cannot be converted: .*{re.escape(reason)}"):
        from_hf(block)


def test_an_unused_parameter_is_no_obstacle():
    assert isinstance(from_hf(Oddity(tiny_block("mixtral", "MixtralSparseMoeBlock")).eval()), MoE)


def test_experts_that_do_something_else_are_refused():
    block = tiny_block("mixtral", "MixtralSparseMoeBlock")
    forward = block.experts.forward
    block.experts.forward = lambda hidden, ids, weights: forward(hidden, ids, weights).abs()
    with pytest.raises(UnsupportedBlock, match="what its experts compute is not understood"):
        from_hf(block)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (nn.Linear(4, 4), "Linear has no MoE block to convert: it holds no experts"),
        (MoE(gatelab.create_router("topk-softmax", 8, 4), Experts(4, 8, 4)), "MoE has no MoE block to convert"),
    ],
)
def test_what_is_no_block_is_refused(block, reason):
    with pytest.raises(UnsupportedBlock, match=reason):
        from_hf(block)


def test_blocks_without_numbers_are_refused():
    block = tiny_block("mixtral", "MixtralSparseMoeBlock")
    with pytest.raises(UnsupportedBlock, match="it is on the meta device; give it weights first"):
        from_hf(block.to("meta"))
    block = tiny_block("mixtral", "MixtralSparseMoeBlock")
    block.experts.down_proj.data.fill_(torch.nan)
    with pytest.raises(UnsupportedBlock, match=r"what its experts compute is not understood|not finite"):
        from_hf(block)


def test_layers_of_ours_are_no_blocks_whatever_stands_around_their_experts():
    block = tiny_block("axk1", "AXK1MoE")
    for layer in (from_hf(block), nn.ModuleList([from_hf(block)])):
        with pytest.raises(UnsupportedBlock, match="has no MoE block to convert: it holds no experts"):
            from_hf(layer)


def test_a_table_that_repeats_an_expert_is_refused():
    block = tiny_block("deepseek_v4", "DeepseekV4SparseMoeBlock")
    block.gate.tid2eid.zero_()  # as it is before a checkpoint is loaded
    with pytest.raises(UnsupportedBlock, match=r"gives a token the same expert twice, as in \[0, 0, 0\]"):
        from_hf(block)


def test_nllb_sends_every_token_to_experts_0_and_1_as_its_reason_says():
    block = tiny_block("nllb_moe", "NllbMoeSparseMLP")
    called = set()
    for name, expert in block.experts.named_children():
        expert.register_forward_hook(lambda *_, name=name: called.add(name))
    block(torch.randn(4, 50, 32))
    assert called == {"expert_0", "expert_1"}
    with pytest.raises(UnsupportedBlock, match="experts 0 and 1 get every token"):
        from_hf(block)


def test_a_block_that_fails_by_itself_is_refused_with_its_own_error():
    # One expert per token: transformers squeezes that dimension away and then unpacks it.
    block = tiny_block("longcat_flash", "LongcatFlashMoE", num_experts_per_tok=1)
    with pytest.raises(ValueError, match="not enough values"):
        block(torch.randn(2, 3, 32))
    with pytest.raises(UnsupportedBlock, match="random hidden states fails with ValueError: not enough val") as refused:
        from_hf(block)
    assert type(refused.value.__cause__) is ValueError
    # In a model too, with the place.
    with pytest.raises(
        UnsupportedBlock, match="0: LongcatFlashMoE cannot be converted: running it on random"
    ) as refused:
        from_hf(nn.ModuleList([block]))
    assert type(refused.value.__cause__) is ValueError


def test_a_mistake_of_ours_is_told_from_a_block_that_is_not_understood(monkeypatch):
    block = tiny_block("mixtral", "MixtralSparseMoeBlock")
    monkeypatch.setattr("gatelab.zoo.hf.read.find_gate", lambda evidence: {}["gate"])
    with pytest.raises(UnsupportedBlock, match="gatelab itself failed on it with KeyError: 'gate'") as refused:
        from_hf(block)
    assert type(refused.value.__cause__) is KeyError


def test_too_little_memory_says_nothing_about_a_block():
    block = tiny_block("mixtral", "MixtralSparseMoeBlock")

    def forward(*_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("full")

    block.experts.forward = forward
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        from_hf(block)
