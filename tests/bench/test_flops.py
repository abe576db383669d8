"""Closed forms against torch's own counter, and against arithmetic by hand."""

import pytest
import torch
from tiny import tiny

import gatelab
from gatelab.bench.config import DEFAULT_ROUTERS
from gatelab.bench.describe import model_flops
from gatelab.bench.flops import Flops, attention_flops, experts_flops, moe_flops
from gatelab.bench.model import ByteTransformer
from gatelab.bench.work import count_work

B, S = 2, 8


def part_of(module):
    parts = ("router", "experts", "shared", "attention")
    return next((part for part in parts if part in module.split(".")), "other")


@pytest.mark.parametrize("attention", ["plain", "lfa"])
@pytest.mark.parametrize("name", DEFAULT_ROUTERS)
def test_closed_form_equals_torchs_counter_part_by_part(name, attention):
    model = ByteTransformer(tiny(name, attention=attention), name, 5, seed=0)
    ids = torch.randint(256, (B, S))
    with gatelab.record(model) as tape:
        work, _ = count_work(lambda: model(ids), model, part_of)
    flops = model_flops(model, [routing for _, routing in tape.entries], B, S)
    assert {part: f.executed for part, f in flops.items()} == {part: w.matmul for part, w in work.items()}


def test_shared_expert_and_padding():
    mask = torch.tensor([[True] * 8, [True] * 3 + [False] * 5])
    shared = gatelab.SharedExpert(16, 6, gated_output=True)
    moe = gatelab.MoE(gatelab.create_router("topk-softmax", 16, 4, 2), gatelab.Experts(4, 16, 5), shared)
    attention = gatelab.FilteredAttention(16, 2)
    x = torch.randn(B, S, 16)
    (work, (_, routing)) = count_work(lambda: moe(x, token_mask=mask), moe, part_of)
    flops = moe_flops(moe, routing)
    assert {part: f.executed for part, f in flops.items()} == {
        part: work[part].matmul for part in ("router", "experts", "shared")
    }
    # 11 of 16 positions are real: a gate of 2·16·4 FLOPs each, 3 matrices of 16 × 6 and a gate of 16 for the shared one
    assert flops["router"] == Flops(11 * 128, 16 * 128)
    assert flops["shared"] == Flops(11 * 2 * (3 * 96 + 16), 16 * 2 * (3 * 96 + 16))
    # real tokens alone are routed: 11 · 2 assignments of 3 matrices of 16 × 5
    assert flops["experts"] == Flops(22 * 6 * 80, 22 * 6 * 80)
    # Per position 4 projections of 16 × 16 and the filter's 4 products of 16 × 8; per pair 4 · 16.
    # Pairs: rows of 8 and 3 real tokens have 36 + 6 under the diagonal, 2 · 64 are computed.
    each = 2 * 4 * 256 + 2 * 4 * 128
    expected = Flops(11 * each + 42 * 64, 16 * each + 128 * 64)
    assert attention_flops(attention, B, S, mask) == expected
    work, _ = count_work(lambda: attention(x, token_mask=mask), attention, part_of)
    assert sum(w.matmul for w in work.values()) == expected.executed


def test_dropped_assignments_are_neither_useful_nor_executed():
    ids, gates = torch.zeros(6, 1, dtype=torch.int64), torch.ones(6, 1)
    routing = gatelab.Routing.from_topk(ids, gates, 2, keep=torch.tensor([[True]] * 4 + [[False]] * 2))
    one = 6 * 16 * 5
    assert experts_flops(gatelab.Experts(2, 16, 5), routing) == Flops(4 * one, 4 * one, dropped=2 * one)


def test_elementwise_and_sorted_work_of_a_gate():
    router = gatelab.create_router("topk-softmax", 16, 4, 2)
    work, _ = count_work(lambda: router(torch.randn(1, 10, 16)), router, lambda module: "gate")
    # top-2 looks at 10 · 4 scores, grouping sorts 10 · 2 ids and searches 5 bounds in the sorted 20
    assert work["gate"].sorted == 40 + 20 + 20
    # at least the softmax (40) and dividing the 20 chosen by their sums
    assert work["gate"].elementwise >= 60
