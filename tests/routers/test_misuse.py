"""What users do to gates besides calling them: replay, copy, lend them odd masks, move them, wrap them."""

import copy
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import gatelab
from gatelab import Router, kernels, testing
from gatelab.routers.balance import Balance
from gatelab.routers.score import AttentionScore, FilteredScore, LinearScore
from gatelab.routers.select import Capacity, SparseMixer, TopK

D, E = 16, 6


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_gate_that_makes_its_own_weights_makes_them_for_forced_experts_too(wrapped):
    select = Capacity(SparseMixer(2), None) if wrapped else SparseMixer(2)
    router = Router(score=LinearScore(D, E), select=select, select_on="logits", activation="none").eval()
    x = torch.randn(2, 9, D)
    routing = router(x)
    weights, ids = routing.topk()
    torch.testing.assert_close(router(x, forced=ids).topk(), (weights, ids))


def test_replay_asks_the_base_for_its_own_weights():
    torch.manual_seed(0)
    grin, x = gatelab.create_router("grin", D, E), torch.randn(2, 9, D, requires_grad=True)
    routing = grin.eval()(x)
    replay = gatelab.create_router("replay", D, E, routing=routing, weights="recomputed", base="grin").eval()
    replay.load_state_dict(grin.state_dict())
    torch.testing.assert_close(replay(x).topk(), routing.topk())
    # In training the gradient is SparseMixer's: that of p, whatever the weight was multiplied by.
    p = replay(x).to_dense()
    torch.manual_seed(1)
    replay.train()(x).weights.sum().backward()
    (expected,) = torch.autograd.grad(p.sum(), replay.score.weight)
    torch.testing.assert_close(replay.score.weight.grad, expected)


def test_replay_puts_recorded_weights_where_they_were(tmp_path):
    llama4 = gatelab.create_router("llama4", D, E)
    x = torch.randn(1, 6, D)
    routing = llama4(x)
    routing.save(tmp_path / "routing.npz")
    replay = gatelab.create_router("replay", D, E, routing=tmp_path / "routing.npz")
    experts = gatelab.Experts(E, D, 8)
    torch.testing.assert_close(gatelab.MoE(replay, experts)(x)[0], gatelab.MoE(llama4, experts)(x)[0])


def test_a_soft_gate_cannot_be_replayed():
    routing = gatelab.create_router("topk-softmax", D, E)(torch.randn(1, 4, D))
    with pytest.raises(ValueError, match="base='soft-moe' selects nothing"):
        gatelab.create_router("replay", D, E, routing=routing, weights="recomputed", base="soft-moe")


@pytest.mark.parametrize("name", gatelab.list_routers())
def test_a_mask_may_have_any_strides(name):
    options = {}
    if name == "replay":
        options["routing"] = gatelab.create_router("topk-softmax", D, E)(torch.randn(2, 9, D))
    router = gatelab.create_router(name, D, E, **options)
    mask = (torch.arange(18).view(9, 2) % 4 > 0).t()
    ids = torch.zeros(9, 2, dtype=torch.int64).t()
    x = torch.randn(9, 2, D).transpose(0, 1)
    assert not mask.is_contiguous()
    assert not x.is_contiguous()
    for training in (True, False):
        results = []
        for a, b in ((x, mask), (x.contiguous(), mask.contiguous())):
            torch.manual_seed(0)
            results.append(router.train(training)(a, token_mask=b, token_ids=ids, labels=ids).to_dense())
        assert torch.equal(*results)


@pytest.mark.parametrize("bad", [[[9, 9]], [[0, 0]], [[-7, 3]]])
def test_what_forced_holds_at_masked_tokens_does_not_matter(bad):
    router, x = gatelab.create_router("topk-softmax", D, E), torch.randn(1, 2, D)
    forced, mask = torch.tensor([[0, 1], *bad]), torch.tensor([[True, False]])
    assert router(x, forced=forced, token_mask=mask).topk()[1].tolist() == [[0, 1], [-1, -1]]


def test_forced_must_be_integers_and_may_be_nothing():
    router, x = gatelab.create_router("gshard", D, E), torch.randn(1, 2, D)
    with pytest.raises(ValueError, match=r"forced is torch.float32; pass integer"):
        router(x, forced=torch.zeros(2, 2))
    assert int(router(x, forced=torch.zeros(2, 0, dtype=torch.int64)).tokens_per_expert.sum()) == 0


def test_an_additive_mask_is_refused():
    router, x = gatelab.create_router("topk-softmax", D, E), torch.randn(1, 3, D)
    with pytest.raises(ValueError, match="token_mask holds other numbers than 0 and 1"):
        router(x, token_mask=torch.tensor([[0.0, 0.0, -torch.inf]]))
    assert router(x, token_mask=torch.tensor([[1.0, 1.0, 0.0]])).experts_per_token.tolist() == [2, 2, 0]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", sorted(set(gatelab.list_routers()) - {"replay"}))
def test_flops_are_torchs_count(name, training):
    router = gatelab.create_router(name, D, E).train(training)
    batch = testing.make_batch(router, D)
    previous = testing.route(router, batch) if name == "moe-plus-plus" else None
    with kernels.use("reference"), FlopCounterMode(display=False) as counter:
        routing = testing.route(router, batch, previous=previous)
        if name == "soft-moe":  # its mixtures are the gate's
            routing.combine(routing.dispatch(batch.hidden.flatten(0, 1)))
    assert counter.get_total_flops() == router.flops(testing.B * testing.S)


class LearnedParts(Balance):
    """One parameter read in every hook."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(E, E)

    def perturb(self, logits_TE, ctx):
        return self.linear(logits_TE)

    def adjust(self, scores_TE, ctx):
        return self.linear(scores_TE)

    def losses(self, ctx):
        return {"learned": self.linear(ctx.scores).square().mean()}


class LearnedWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, gates_TJ, valid_TJ, ctx):
        return self.linear(gates_TJ)


class LearnedSelect(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.topk = nn.Linear(E, E), TopK(2)

    def forward(self, scores_TE, ctx):
        return self.topk(self.linear(scores_TE), ctx)


def test_parts_with_parameters_run_in_float32_after_to_bfloat16():
    torch.manual_seed(0)
    router = Router(
        score=LinearScore(D, E), select=LearnedSelect(), weight=LearnedWeight(), balance=[LearnedParts()]
    ).to(torch.bfloat16)
    wide = copy.deepcopy(router).float()
    x = torch.randn(2, 5, D)
    low, expected = router(x), wide(x)
    torch.testing.assert_close(low.to_dense(), expected.to_dense())
    torch.testing.assert_close(low.losses["learned"], expected.losses["learned"])
    low.losses["learned"].backward()
    assert router.balance[0].linear.weight.grad.dtype == torch.bfloat16


def test_two_filters_decode_with_one_cache():
    attention = gatelab.FilteredAttention(D, 2)
    gates = [
        gatelab.create_router("attention-lfa", D, E).eval(),
        Router(score=FilteredScore(AttentionScore(D, E, lfa=True)), select=TopK(2)).eval(),
    ]
    x, cache, steps = torch.randn(2, 7, D), {}, []
    for s in range(7):
        steps.append([gate(x[:, s : s + 1], cache=cache).to_dense() for gate in gates])
        steps[-1].append(attention(x[:, s : s + 1], cache=cache).flatten(0, 1))
    whole = [gate(x).to_dense() for gate in gates] + [attention(x).flatten(0, 1)]
    for expected, pieces in zip(whole, zip(*steps, strict=True), strict=True):
        torch.testing.assert_close(expected.view(2, 7, -1), torch.stack(pieces, 1).view(2, 7, -1))


def test_a_copy_of_an_attached_model_is_not_attached():
    moe = gatelab.MoE(gatelab.create_router("loss-free", D, E, 2), gatelab.Experts(E, D, 8))
    optimizer = torch.optim.SGD(moe.parameters(), lr=0.1)
    handle = gatelab.attach(optimizer, moe)
    with gatelab.record(moe):
        copies = [copy.deepcopy(moe), pickle.loads(pickle.dumps(moe))]
    assert all(c.router.listeners == () for c in copies)
    assert moe.router.listeners == (handle,)
    handle.remove()
    moe(torch.randn(1, 4, D))
    optimizer.step()
    assert not moe.router.balance[0].bias.any(), "removed, and still it moves the bias"


def test_a_replica_is_refused_where_its_state_would_be_lost():
    router = gatelab.create_router("loss-free", D, E)
    replica = copy.copy(router)  # as nn.DataParallel does, which shares the listeners
    with gatelab.record(router):
        replica.listeners = router.listeners
        with pytest.raises(RuntimeError, match="use DistributedDataParallel"):
            replica(torch.randn(1, 4, D))


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("switch", {"capacity_factor": float("inf")}, "capacity_factor=inf must be a finite number above 0"),
        ("switch", {"capacity_factor": True}, "capacity_factor=True must be a finite number above 0"),
        ("switch", {"capacity_factor": "1.25"}, "capacity_factor='1.25' must be a finite number above 0"),
        ("x-moe", {"temperature": 0}, "temperature=0 must be"),
        ("x-moe", {"projection": 0}, "projection=0 must be"),
        ("mlp", {"width": 0}, "width=0 must be"),
        ("deepseek-v3", {"num_groups": 0}, "num_groups=0 must be"),
        ("hash", {"vocab_size": 0}, "vocab_size=0 must be"),
        ("skywork-moe", {"sharpness": float("nan")}, "sharpness=nan must be"),
        ("moe-plus-plus", {"zero_computation": ("foo",)}, "zero_computation holds 'foo'; choose among identity"),
    ],
)
def test_options_that_make_no_sense(name, options, says):
    with pytest.raises(ValueError, match=says):
        gatelab.create_router(name, D, E, **options)


def test_numbers_of_other_libraries_are_numbers():
    router = gatelab.create_router("switch", np.int64(D), np.int32(E), capacity_factor=Fraction(5, 4))
    assert router(torch.randn(1, 8, D)).num_experts == E
