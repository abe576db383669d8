"""`build`: the layer of every disclosed model, as its geometry says."""

from itertools import chain

import pytest
import torch

from gatelab import LocalizedFiltering, MoE
from gatelab.zoo import MODELS, UNDISCLOSED, Model, build
from gatelab.zoo.activations import ClampedSwiGLU

SCALE = 1 / 64


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_reduced_layer_runs_forward_and_backward(model: Model):
    torch.manual_seed(0)
    moe = build(model.name, SCALE)
    D = round(model.geometry.hidden_size / 64)
    x = torch.randn(2, 40, D, requires_grad=True)
    y, routing = moe(x)
    assert y.shape == x.shape
    assert routing.num_experts == model.moe.num_experts + model.moe.zero_experts
    assert routing.router_logits.shape == (80, routing.num_experts)
    assert int(routing.experts_per_token.max()) == model.moe.top_k
    (y.square().sum() + routing.aux_loss).backward()
    for name, parameter in chain(moe.router.named_parameters(), moe.experts.named_parameters()):
        if parameter.numel():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name
    assert (moe.shared is not None) == bool(model.moe.shared_experts)
    assert x.grad.isfinite().all()
    with torch.no_grad():
        assert moe.eval()(x)[0].isfinite().all()


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_full_layer_has_the_parameters_of_its_geometry(model: Model):
    moe, spec, D = build(model.name, device="meta"), model.moe, model.geometry.hidden_size
    I, E, J = spec.intermediate_size, spec.num_experts, spec.shared_intermediate_size
    assert {p.device.type for p in moe.parameters()} == {"meta"}
    biases = E * (2 * I + D) if spec.expert_bias else 0
    assert sum(p.numel() for p in moe.experts.parameters()) == E * 3 * D * I + biases
    shared = 3 * D * J + D * spec.shared_gate
    assert (0 if moe.shared is None else sum(p.numel() for p in moe.shared.parameters())) == shared
    columns = E + spec.zero_experts
    tensors = {**dict(moe.router.named_parameters()), **dict(moe.router.named_buffers())}
    biases = sum(t.numel() for name, t in tensors.items() if name.endswith("bias"))
    assert biases == (columns if spec.router_bias else 0)
    matrices = sum(p.numel() for p in moe.router.parameters() if p.dim() > 1)
    assert matrices == (3 if spec.attention_router else 1) * D * columns


def test_localized_filtering_belongs_to_yuan_alone_and_stands_beside_the_layer():
    with_lfa = [model.name for model in MODELS if hasattr(build(model.name, device="meta"), "lfa")]
    assert with_lfa == ["Yuan2.0-M32"]
    torch.manual_seed(0)
    moe = build("yuan2.0-m32", scale=1 / 16)
    assert isinstance(moe, MoE)
    assert isinstance(moe.lfa, LocalizedFiltering)
    x = torch.randn(1, 6, 128)
    assert moe.lfa(x).shape == x.shape
    # For the queries and keys of attention: the layer itself does not pass it.
    y, _ = moe(x)
    with torch.no_grad():
        for parameter in moe.lfa.parameters():
            parameter.zero_()
    assert torch.equal(moe(x)[0], y)


@pytest.mark.parametrize(
    ("name", "part", "attribute", "value"),
    [
        ("DeepSeek-V3", "select", "num_groups", 8),
        ("DeepSeek-V3", "select", "keep_groups", 4),
        ("DeepSeek-V2 / V2.5", "select", "keep_groups", 3),
        ("Kimi-K2", "select", "k", 8),
        ("Mixtral-8x7B", "select", "k", 2),
    ],
)
def test_the_gate_has_the_published_options(name, part, attribute, value):
    assert getattr(getattr(build(name, device="meta").router, part), attribute) == value


def test_activations_and_zero_experts_are_those_of_the_model():
    assert build("gpt-oss-20b", device="meta").experts.activation == ClampedSwiGLU(7.0, 1.702, 1.0)
    assert build("grok-1", device="meta").experts.activation == "geglu"
    longcat = build("longcat-flash", device="meta")
    assert longcat.router.zero_computation == ("identity",) * 256
    assert longcat.experts.num_experts == 512


def test_dtype_and_device_are_asked_for():
    moe = build("mixtral", SCALE, dtype=torch.bfloat16)
    assert {p.dtype for p in moe.parameters()} == {torch.bfloat16}
    y, routing = moe(torch.randn(2, 3, 64, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert routing.weights.dtype == torch.float32


@pytest.mark.parametrize("typed", ["yuan2.0-m32", "YUAN 2.0 M32", "yuan", "Yuan2.0-M32"])
def test_names_are_looked_up_as_for_flops(typed):
    assert build(typed, SCALE).router.num_experts == 32


@pytest.mark.parametrize(
    ("name", "scale", "message"),
    [
        ("qwen", 1.0, r"^model 'qwen' is ambiguous: Qwen1\.5.*; give more of the name$"),
        ("mixtrall", 1.0, r"^no published model 'mixtrall'; nearest: Mixtral-8x7B"),
        ("gpt-4", 1.0, r"^GPT-4 has no public shape to build from$"),
        (
            "skywork 2.0",
            1.0,
            r"^Skywork 2\.0 .* has no public shape to build from; its disclosed relative is Skywork-MoE",
        ),
        ("mixtral", 1 / 4096, r"^scale=.* leaves 1 of a width of 4096; use a larger one$"),
        ("mixtral", float("nan"), r"^scale=nan is no width; pass a number such as 1/16$"),
        ("mixtral", float("inf"), r"^scale=inf is no width"),
        ("mixtral", -1.0, r"^scale=-1\.0 leaves -4096 of a width of 4096; use a larger one$"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(name, scale, message):
    with pytest.raises(ValueError, match=message) as refused:
        build(name, scale)
    assert "\n" not in str(refused.value)


def test_every_undisclosed_system_is_refused():
    for system in UNDISCLOSED:
        with pytest.raises(ValueError, match="has no public shape"):
            build(system.name)
