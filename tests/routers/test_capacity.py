"""Capacity, chance and recycling: small cases by hand, and a loop over tokens as the oracle."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gatelab
from gatelab import Context, Router, Selection
from gatelab.routers.balance import SwitchLoss
from gatelab.routers.score import LinearScore
from gatelab.routers.select import Capacity, RandomSecond, Recycle, TopK
from gatelab.routers.select.capacity import slots
from gatelab.routers.weight import Renormalize


def context(scores, B=1, mask=None, training=True) -> Context:
    T, E = scores.shape
    ctx = Context(torch.zeros(B, T // B, 2), num_experts=E, training=training, token_mask=mask)
    ctx.logits = ctx.noisy_logits = ctx.scores = ctx.probabilities = scores
    return ctx


def kept(select, scores, **kwargs) -> list[list[int]]:
    """The kept ids of each token; what was dropped is -1."""
    selection = select.train(kwargs.get("training", True))(scores, context(scores, **kwargs))
    return torch.where(selection.keep, selection.ids, -1).tolist()


# Top-2 of these four tokens: (0, 1), (0, 1), (0, 2), (1, 0); with cf = 1 and E = 3, C = ceil(2 · 4 / 3) = 3.
SCORES = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.7, 0.1, 0.2], [0.35, 0.6, 0.05]])


def test_first_choices_come_first():
    # expert 0: first choices of t0, t1, t2 fill it, so t3's second choice is dropped
    # expert 1: first choice of t3, then the second ones of t0 and t1;  expert 2: t2
    assert kept(Capacity(TopK(2), 1.0), SCORES) == [[0, 1], [0, 1], [0, 2], [1, -1]]
    # C = ceil(8 · 0.5 / 3) = 2: expert 0 keeps t0 and t1; expert 1 keeps t3 and t0
    assert kept(Capacity(TopK(2), 0.5), SCORES) == [[0, 1], [0, -1], [-1, 2], [1, -1]]


def test_priority_and_score():
    # C = 2. Top scores .6, .5, .7, .6: t2, then t0 and t3 (a tie, in the order of tokens), t1
    # expert 0: t2, t0 of t0, t1, t2;  expert 1: first t3, then t0
    assert kept(Capacity(TopK(2), 0.5, drop="priority"), SCORES) == [[0, 1], [-1, -1], [0, 2], [1, -1]]
    # by score, whichever choice: expert 0 has .6 .5 .7 .35, keeps t2 and t0;  expert 1 has .3 .4 .6, keeps t3 and t1
    assert kept(Capacity(TopK(2), 0.5, drop="score"), SCORES) == [[0, -1], [-1, 1], [0, 2], [1, -1]]


def test_padding_takes_no_place_and_rows_are_groups():
    mask = torch.tensor([[False, True, True, True]])
    # three real tokens, C = ceil(6 · 0.5 / 3) = 1: t1 takes expert 0, t3 expert 1, t2's second choice expert 2
    assert kept(Capacity(TopK(2), 0.5), SCORES, mask=mask) == [[-1, -1], [0, -1], [-1, 2], [1, -1]]
    # rows (t0, t1) and (t2, t3), C = ceil(4 · 0.5 / 3) = 1 in each
    assert kept(Capacity(TopK(2), 0.5, group="sequence"), SCORES, B=2) == [[0, 1], [-1, -1], [0, 2], [1, -1]]


def test_evaluation_has_its_own_factor():
    select = Capacity(TopK(2), 0.5, 1.0)
    assert kept(select, SCORES, training=False) == [[0, 1], [0, 1], [0, 2], [1, -1]]
    assert Capacity(TopK(2), 0.5)(SCORES, context(SCORES, training=False)).keep is None
    assert Capacity(TopK(2), 0.5).guarantees(False) == TopK(2).guarantees(False)
    assert Capacity(TopK(2), 0.5).guarantees(True).max_load == 0.5


def test_ratios_are_exact():
    # in floats 50 · 1.1 = 55.000000000000007 and its ceiling 56
    assert slots(50, 1.1, 1) == 55
    assert slots(torch.tensor([50, 0, 1]), 1.1, 1).tolist() == [55, 0, 2]


class Given(nn.Module):
    """A selection of fixed ids and drops."""

    def __init__(self, ids, keep):
        super().__init__()
        self.ids, self.keep = ids, keep

    def forward(self, scores_TE, ctx):
        return Selection(self.ids, keep=self.keep)


def loop(ids, keep, scores, mask, factor, drop, G, E):
    """Who is kept, one assignment after the other, in Python."""
    T, J = ids.shape
    result = torch.zeros(T, J, dtype=torch.bool)
    for tokens in torch.arange(T).view(G, -1).tolist():
        entries = [(t, j) for j in range(J) for t in tokens if mask[t] and ids[t, j] >= 0]
        C = math.ceil(len(entries) * Fraction(str(factor)) / E)
        if drop == "score":
            entries.sort(key=lambda tj: -float(scores[tj[0], ids[tj]]))
        elif drop == "priority":
            entries.sort(key=lambda tj: (tj[1], -float(scores[tj[0]].max())))
        load = [0] * E
        for tj in entries:
            expert = int(ids[tj])
            if keep[tj] and load[expert] < C:
                load[expert] += 1
                result[tj] = True
    return result


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    B=st.integers(1, 3),
    S=st.integers(1, 9),
    E=st.integers(1, 5),
    factor=st.sampled_from([0.1, 0.5, 1.0, 1.1, 1.25, 2.0]),
    drop=st.sampled_from(["position", "score", "priority"]),
    group=st.sampled_from(["sequence", "batch"]),
)
def test_against_a_loop(seed, B, S, E, factor, drop, group):
    g = torch.Generator().manual_seed(seed)
    scores = torch.rand(B * S, E, generator=g)
    ids = scores.argsort(1, descending=True)[:, : max(1, E - 1)]
    ids = torch.where(torch.rand(ids.shape, generator=g) < 0.2, -1, ids)
    keep = torch.rand(ids.shape, generator=g) < 0.8
    mask = torch.rand(B * S, generator=g) < 0.7
    select = Capacity(Given(ids, keep), factor, drop=drop, group=group)
    selection = select(scores, context(scores, B=B, mask=mask.view(B, S)))
    expected = loop(ids, keep, scores, mask, factor, drop, B if group == "sequence" else 1, E)
    assert torch.equal(selection.keep, expected)


@pytest.mark.parametrize("drop", ["position", "priority"])
def test_against_nllb(drop):
    from transformers import NllbMoeConfig
    from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeTop2Router

    config = NllbMoeConfig(
        d_model=8,
        num_experts=4,
        expert_capacity=9,  # C = ceil(2 · 24 · 0.75 / 4) = 9
        normalize_router_prob_before_dropping=True,
        batch_prioritized_routing=drop == "priority",
        moe_eval_capacity_token_fraction=0.0,
    )
    torch.manual_seed(0)
    theirs = NllbMoeTop2Router(config).eval()
    ours = Router(score=LinearScore(8, 4), select=Capacity(TopK(2), None, 0.75, drop=drop), weight=Renormalize()).eval()
    ours.load_state_dict({"score.weight": theirs.classifier.weight.data})
    for _ in range(5):
        x = torch.randn(24, 8) * 3 + 1
        _, combine, _ = theirs(x)
        routing = ours(x)
        assert bool(routing.dropped.any())
        torch.testing.assert_close(routing.to_dense(), combine)


def test_against_switch_transformers():
    from transformers import SwitchTransformersConfig
    from transformers.models.switch_transformers.modeling_switch_transformers import (
        SwitchTransformersTop1Router,
        load_balancing_loss_func,
    )

    # C = ceil(20 · 0.75 / 4) = 4 in each of three rows
    config = SwitchTransformersConfig(hidden_size=8, num_experts=4, expert_capacity=4, router_jitter_noise=0.1)
    torch.manual_seed(0)
    theirs = SwitchTransformersTop1Router(config)
    ours = gatelab.create_router("switch", 8, 4, capacity_factor=0.75, group="sequence", jitter=0.1)
    ours.load_state_dict({"score.weight": theirs.classifier.weight.data})
    x = torch.randn(3, 20, 8) * 2 + 1
    torch.manual_seed(1)
    mask, weights, _logits = theirs(x.clone())  # it multiplies its input in place
    torch.manual_seed(1)
    routing = ours(x)
    assert bool(routing.dropped.any())
    torch.testing.assert_close(routing.to_dense(), (mask * weights).flatten(0, 1))
    # theirs is the mean of one loss per row, on what was requested
    requested = routing.scores.argmax(1).view(3, 20, 1)
    expected = load_balancing_loss_func(routing.probabilities.view(3, 20, 4), requested.squeeze(-1))
    rows = SwitchLoss(1.0, "sequence")
    ours.balance = nn.ModuleList([ours.balance[0], rows])
    torch.manual_seed(1)
    torch.testing.assert_close(ours(x).losses["switch-sequence"], expected)


def test_random_second():
    # second choices with shares .1, .25, .5: kept with probability .2, .5, 1 at threshold 1/2
    scores = torch.tensor([[0.9, 0.1], [0.75, 0.25], [0.5, 0.5]]).repeat(4000, 1)
    torch.manual_seed(0)
    select = RandomSecond(TopK(2))
    selection = select(scores, context(scores))
    first, second = selection.keep.view(-1, 3, 2).float().mean(0).unbind(1)
    assert first.tolist() == [1, 1, 1]
    # 4000 draws: a standard deviation of at most .5/√4000 = .008
    torch.testing.assert_close(second, torch.tensor([0.2, 0.5, 1.0]), atol=0.03, rtol=0)
    assert select(scores, context(scores, training=False)).keep is None
    # the first choice stays though its share, 1/3, is below the threshold
    equal = torch.full((100, 3), 1 / 3)
    assert bool(RandomSecond(TopK(3), 2.0)(equal, context(equal)).keep[:, 0].all())
    # at 0.2 a share of .1 is kept every other time
    second = RandomSecond(TopK(2), 0.2)(scores, context(scores)).keep.view(-1, 3, 2)[..., 1].float().mean(0)
    torch.testing.assert_close(second, torch.tensor([0.5, 1.0, 1.0]), atol=0.03, rtol=0)


def test_what_chance_leaves_out_takes_no_place():
    # both tokens want (0, 1); without t0's second choice, t1's fits into expert 1 (C = ceil(4 · 0.5 / 2) = 1)
    ids, keep = torch.tensor([[0, 1], [0, 1]]), torch.tensor([[True, False], [True, True]])
    assert kept(Capacity(Given(ids, keep), 0.5), torch.rand(2, 2)) == [[0, -1], [-1, 1]]


def test_weights_do_not_change_when_others_are_dropped():
    router = Router(
        score=lambda ctx: SCORES.log(), select=Capacity(TopK(2), 0.5), weight=Renormalize(), num_experts=3
    ).train()
    # t1 keeps expert 0 of (0, 1) with .5/(.5 + .4), though its second choice is gone
    assert router(torch.zeros(4, 2)).to_dense()[1].tolist() == pytest.approx([0.5 / 0.9, 0, 0])


def test_recycling():
    # all five tokens want expert 0, C = ceil(5 · 1.0 / 3) = 2: t0 and t1 stay, the others go to 1 and 2, two at most
    scores = torch.tensor([[0.8, 0.1, 0.1]]).repeat(5, 1)
    for seed in range(20):
        torch.manual_seed(seed)
        selection = Recycle(TopK(1), 1.0)(scores, context(scores))
        first, second = selection.ids.unbind(1)
        assert first.tolist() == [0] * 5
        assert selection.keep.tolist() == [[True, False]] * 2 + [[False, True]] * 3
        assert second[:2].tolist() == [-1, -1]
        assert sorted(second[2:].tolist()) in ([1, 1, 2], [1, 2, 2])
    seen = set()
    for seed in range(30):
        torch.manual_seed(seed)
        seen.add(tuple(Recycle(TopK(1), 1.0)(scores, context(scores)).ids[2:, 1].tolist()))
    assert len(seen) == 6  # every way to fill them comes up


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31), B=st.integers(1, 3), S=st.integers(1, 9), E=st.integers(1, 5),
    group=st.sampled_from(["sequence", "batch"]), factor=st.sampled_from([0.5, 1.0, 1.25]),
)  # fmt: skip
def test_recycling_fills_no_expert_beyond_its_places(seed, B, S, E, group, factor):
    torch.manual_seed(seed)
    scores, mask = torch.rand(B * S, E).softmax(1), torch.rand(B, S) < 0.7
    selection = Recycle(TopK(1), factor, group)(scores, context(scores, B=B, mask=mask))
    ids = torch.where(selection.keep, selection.ids, -1).view(B if group == "sequence" else 1, -1)
    real = mask if group == "sequence" else mask.view(1, -1)
    for row, n in zip(ids, real.sum(1).tolist(), strict=True):
        loads = torch.bincount(row[row >= 0], minlength=E)
        C = math.ceil(n * Fraction(str(factor)) / E)
        assert int(loads.max()) <= C
        assert int(loads.sum()) == min(n, E * C)  # nobody is left out while there is room


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="capacity_factor=0 must be a finite number above 0"):
        Capacity(TopK(1), 0)
    with pytest.raises(ValueError, match="drop='last' is unknown; choose one of position, score, priority"):
        Capacity(TopK(1), 1.0, drop="last")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="threshold=0 must be positive"):
        RandomSecond(TopK(2), 0)
    with pytest.raises(ValueError, match="top_k=3: gshard is defined for 2"):
        gatelab.create_router("gshard", 8, 4, 3)
    with pytest.raises(ValueError, match="top_k=2: hunyuan-large recycles one"):
        gatelab.create_router("hunyuan-large", 8, 4, 2)
