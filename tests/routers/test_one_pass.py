"""The kernel that stands for a gate's parts answers what they do, and gives way wherever they are not its own."""

import copy

import pytest
import torch
from torch import nn

import gatelab
from gatelab import kernels
from gatelab.kernels.backend import _tables
from gatelab.routers import one_pass, weight
from gatelab.routers.balance import SwitchLoss
from gatelab.routers.chain import Chain
from gatelab.routers.registry import create_router, list_routers
from gatelab.routers.router import Router
from gatelab.routers.score import LinearScore
from gatelab.routers.select import TopK

D, E, K = 16, 24, 4
FIELDS = ("token_index", "expert_offsets", "choice", "requested", "weights", "router_logits", "scores", "probabilities")
# fmt: off
RECOGNISED = [
    "attention", "attention-lfa", "bip", "dbrx", "deepseek-moe", "deepseek-v2", "deepseek-v3", "deepseek-v4",
    "gpt-oss", "grok-1", "hadamard", "kimi-k2", "llama4", "longcat-flash", "loss-free", "mixtral", "mlp",
    "moe-plus-plus", "noisy-topk", "olmoe", "quantile-balancing", "qwen1.5-moe", "qwen3", "topk-softmax", "x-moe",
    "yuan2-m32",
]
# fmt: on


def gate(name, k=K):
    torch.manual_seed(0)
    router = create_router(name, D, E, 1 if name == "llama4" else k)
    for buffer in router.buffers():
        buffer.add_(0.1 * torch.randn_like(buffer))
    return router


def calls(monkeypatch):
    """How often the kernel has run."""
    counted, run = [], _tables["cpu"]["topk_routing"]
    monkeypatch.setitem(_tables["cpu"], "topk_routing", lambda *a, **b: counted.append(1) or run(*a, **b))
    return counted


def by_parts(router, x, **inputs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gatelab.routers.router.one_pass", lambda router, ctx: None)
        return router(x, **inputs)


def assert_same(one, other):
    for name in FIELDS:
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-6, msg=name)
    assert torch.equal(one.topk()[1], other.topk()[1])
    assert list(one.losses) == list(other.losses)
    for name, value in one.losses.items():
        torch.testing.assert_close(value, other.losses[name], rtol=1e-5, atol=1e-7)
    assert sorted(one.statistics) == sorted(other.statistics)
    assert (one.num_tokens, one.weights_on_input) == (other.num_tokens, other.weights_on_input)


def test_which_recipes_are_recognised():
    kernels.topk(torch.randn(2, 3), 1)  # so that the table is there
    found = [
        n for n in list_routers() if n not in ("replay", "soft-moe") and one_pass.recognised(_any_k(n)) is not None
    ]
    assert found == RECOGNISED


def _any_k(name):
    try:
        return create_router(name, D, E)
    except ValueError:
        return create_router(name, D, E, 2)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", RECOGNISED)
def test_equal_to_the_parts(name, training, masked, monkeypatch):
    router = gate(name).train(training)
    counted = calls(monkeypatch)
    mask = torch.rand(2, 20, generator=torch.Generator().manual_seed(1)) < 0.7 if masked else None
    answers, gradients = [], []
    for run in (router, lambda *a, **b: by_parts(router, *a, **b)):
        x = torch.randn(2, 20, D, generator=torch.Generator().manual_seed(2), requires_grad=True)
        torch.manual_seed(3)
        routing = run(x, token_mask=mask)
        answers.append(routing)
        # Everything differentiable, each entry weighed differently.
        loss = routing.aux_loss + (routing.weights * torch.linspace(-1, 2, routing.weights.numel())).sum()
        loss = loss + (routing.probabilities * routing.probabilities.detach().cos()).sum()
        parameters = [p for p in router.parameters() if p.requires_grad]
        gradients.append(torch.autograd.grad(loss, [x, *parameters], allow_unused=True))
    assert counted == [1]
    assert_same(*answers)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


class _ThreeLogits(nn.Module):
    """Every row has ties, also among groups."""

    def forward(self, ctx):
        return ctx.hidden_TD.sum(1, keepdim=True) * torch.arange(E).remainder(3)


@pytest.mark.parametrize("name", ["topk-softmax", "deepseek-v3", "mixtral"])
@pytest.mark.parametrize("T", [0, 1, 3, 700])
def test_any_number_of_tokens_and_ties(name, T):
    router = gate(name)
    router.score = _ThreeLogits()
    x = torch.randn(T, D, generator=torch.Generator().manual_seed(0))
    assert_same(router(x), by_parts(router, x))


def test_second_derivative():
    router = gate("topk-softmax")
    found = []
    for run in (router, lambda x: by_parts(router, x)):
        x = torch.randn(10, D, generator=torch.Generator().manual_seed(0), requires_grad=True)
        routing = run(x)
        loss = routing.weights.square().sum() + 100 * routing.aux_loss
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), [x, *router.parameters()]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


class _Other(TopK):
    pass


class _Doubled(weight.Renormalize):
    def forward(self, gates_TJ, valid_TJ, ctx):
        return 2 * super().forward(gates_TJ, valid_TJ, ctx)


def plain(**parts):
    return Router(**{"score": LinearScore(D, E), "select": TopK(K), "weight": [weight.Renormalize()]} | parts)


def hooked():
    router = plain()
    router.select.register_forward_hook(lambda *_: None)
    return router


def patched():
    router = plain()
    part = router.weight.parts[0]
    part.forward = lambda gates, valid, ctx: gates
    return router


@pytest.mark.parametrize(
    "make",
    [
        lambda: plain(select=_Other(K)),
        lambda: plain(select=lambda scores, ctx: TopK(K)(scores, ctx)),
        lambda: plain(weight=[_Doubled()]),
        lambda: plain(weight=[lambda gates, valid, ctx: gates]),
        lambda: plain(weight=[weight.Constant(0.5)]),
        lambda: plain(weight=[weight.Renormalize(), weight.Scale(2.0), weight.Scale(2.0)]),
        lambda: plain(gate_dtype=torch.float64),
        hooked,
        patched,
    ],
)
def test_parts_of_another_kind_are_asked(make, monkeypatch):
    counted = calls(monkeypatch)
    router = make()
    x = torch.randn(9, D)
    assert_same(router(x), by_parts(router, x))
    assert not counted


def test_a_global_hook_sees_the_parts(monkeypatch):
    counted, seen = calls(monkeypatch), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    try:
        plain()(torch.randn(9, D))
    finally:
        handle.remove()
    assert TopK in seen
    assert not counted


def test_forced_ids_and_other_backends_go_by_the_parts(monkeypatch):
    counted = calls(monkeypatch)
    router, x = gate("topk-softmax"), torch.randn(9, D)
    free = router(x)
    assert counted == [1]
    assert_same(router(x, forced=free.topk()[1]), free)
    with kernels.use("reference"):
        assert_same(router(x), free)
    assert counted == [1]


def test_a_part_that_is_changed_or_replaced_counts_at_once(monkeypatch):
    counted = calls(monkeypatch)
    router, x = plain(weight=[weight.Renormalize(), weight.Scale(2.0)], balance=[SwitchLoss(0.01)]), torch.randn(9, D)
    for change in (
        lambda: setattr(router.select, "k", 2),
        lambda: setattr(router.weight.parts[1], "factor", 3.0),
        lambda: setattr(router, "select", TopK(5)),
        lambda: setattr(router, "weight", Chain([])),
        lambda: setattr(router, "balance", [SwitchLoss(1.0)]),
        lambda: setattr(router, "activation", torch.sigmoid),
    ):
        change()
        assert_same(router(x), by_parts(router, x))
        assert_same(copy.deepcopy(router)(x), by_parts(router, x))
    assert len(counted) == 12


def test_checkpointed_and_in_a_layer():
    torch.manual_seed(0)
    moe = gatelab.MoE(gate("topk-softmax"), gatelab.Experts(E, D, 8))
    x = torch.randn(30, D, requires_grad=True)
    grads = []
    for run in (moe, lambda x: torch.utils.checkpoint.checkpoint(moe, x, use_reentrant=False)):
        y, routing = run(x)
        grads.append(torch.autograd.grad(y.square().sum() + routing.aux_loss, [x, *moe.parameters()]))
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)


def test_nan_is_named():
    x = torch.randn(9, D)
    x[4, 3] = torch.nan
    with pytest.raises(ValueError, match="hidden_states holds 1 NaN or inf, the first at token 4"):
        gate("topk-softmax")(x)
