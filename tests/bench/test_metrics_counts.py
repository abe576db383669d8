"""Counting: padding and absent choices never count, nothing else is lost, sums come before ratios."""

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.multiprocessing.spawn import spawn

from gatelab.bench import metrics as m

UNTIMED = settings(deadline=None)  # other jobs share the cores, a deadline would fail at random

# token 0 uses experts 2 and 0, token 1 only 2, token 2 none, token 3 (padding below) 1 and 2
IDS = torch.tensor([[2, 0], [2, -1], [-1, -1], [1, 2]])
MASK = torch.tensor([True, True, True, False])


@st.composite
def routings(draw, max_experts: int = 6):
    """E and (T, K) distinct ids with some −1."""
    num_experts = draw(st.integers(1, max_experts))
    k = draw(st.integers(1, num_experts))
    num_tokens = draw(st.integers(0, 12))
    rows = [draw(st.permutations(range(num_experts)))[:k] for _ in range(num_tokens)]
    kept = [[e if draw(st.booleans()) else -1 for e in row] for row in rows]
    return num_experts, torch.tensor(kept, dtype=torch.int64).reshape(num_tokens, k)


def test_tokens_per_expert_worked():
    assert m.tokens_per_expert(IDS, 4).tolist() == [1, 1, 3, 0]
    assert m.tokens_per_expert(IDS, 4, MASK).tolist() == [1, 0, 2, 0]


def test_masks_may_be_numbers():
    assert m.tokens_per_expert(IDS, 4, torch.tensor([1, 1, 1, 0])).tolist() == [1, 0, 2, 0]
    assert m.tokens_per_expert(IDS, 4, torch.tensor([1.0, 1.0, 1.0, 0.0])).tolist() == [1, 0, 2, 0]


def test_tokens_per_expert_takes_layers_and_no_tokens():
    layers = torch.stack([IDS, IDS.flip(0), torch.full_like(IDS, -1)])
    assert m.tokens_per_expert(layers, 4, MASK).tolist() == [[1, 0, 2, 0], [0, 1, 2, 0], [0, 0, 0, 0]]
    assert m.tokens_per_expert(IDS[:0], 4).tolist() == [0, 0, 0, 0]
    assert m.tokens_per_expert(IDS.int(), 4).dtype == torch.int64


@UNTIMED
@given(routing=routings())
def test_tokens_per_expert_counts_each_choice_once(routing):
    num_experts, ids = routing
    expected = [sum(row.count(e) for row in ids.tolist()) for e in range(num_experts)]
    assert m.tokens_per_expert(ids, num_experts).tolist() == expected


def test_ids_out_of_range_are_named():
    with pytest.raises(ValueError, match="topk_ids contains 2, expected ids below num_experts=2"):
        m.tokens_per_expert(IDS, 2)
    with pytest.raises(ValueError, match="topk_ids contains 2"):
        m.co_activation(IDS, 2)
    with pytest.raises(ValueError, match="topk_ids contains 2"):
        m.count_by_label(torch.zeros(4, dtype=torch.int64), IDS, num_labels=1, num_experts=2)
    with pytest.raises(ValueError, match="labels contains 7, expected ids below num_labels=7"):
        m.count_by_label(torch.full((4,), 7), IDS, num_labels=7, num_experts=3)


def test_a_mask_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"token_mask has shape \(2, 2\), expected \(4,\)"):
        m.tokens_per_expert(IDS, 4, MASK.view(2, 2))


def test_count_by_label_worked():
    # labels 1, 0, 1, 0: label 1 has tokens 0 (experts 2, 0) and 2 (none), label 0 tokens 1 (expert 2) and 3 (1, 2)
    labels = torch.tensor([1, 0, 1, 0])
    counts = m.count_by_label(labels, IDS, num_labels=3, num_experts=3)
    assert counts.assignments.tolist() == [[0, 1, 2], [1, 0, 1], [0, 0, 0]]
    assert counts.tokens.tolist() == [2, 2, 0]
    masked = m.count_by_label(labels, IDS, num_labels=3, num_experts=3, token_mask=MASK)
    assert masked.assignments.tolist() == [[0, 0, 1], [1, 0, 1], [0, 0, 0]]
    assert masked.tokens.tolist() == [1, 2, 0]


def test_count_by_label_leaves_unknown_labels_out():
    counts = m.count_by_label(torch.tensor([-1, 0, -100, 0]), IDS, num_labels=1, num_experts=3)
    assert counts.assignments.tolist() == [[0, 1, 2]]
    assert counts.tokens.tolist() == [2]


def test_count_by_label_first_choices_only():
    counts = m.count_by_label(torch.zeros(4, dtype=torch.int64), IDS[:, :1], num_labels=1, num_experts=3)
    assert counts.assignments.tolist() == [[0, 1, 2]]  # first choices 2, 2, none, 1


def test_count_by_label_needs_one_label_per_token():
    with pytest.raises(ValueError, match=r"labels has shape \(3,\) and topk_ids \(4, 2\)"):
        m.count_by_label(torch.zeros(3, dtype=torch.int64), IDS, num_labels=1, num_experts=3)
    with pytest.raises(ValueError, match=r"expected \(T,\) and \(T, K\)"):
        m.count_by_label(torch.zeros(4, dtype=torch.int64), IDS[None], num_labels=1, num_experts=3)


@UNTIMED
@given(routing=routings(), data=st.data())
def test_counts_by_label_add_up_to_the_load(routing, data):
    num_experts, ids = routing
    labels = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=len(ids), max_size=len(ids))))
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))), dtype=torch.bool)
    counts = m.count_by_label(labels.long(), ids, num_labels=4, num_experts=num_experts, token_mask=mask)
    assert torch.equal(counts.assignments.sum(0), m.tokens_per_expert(ids, num_experts, mask))
    assert counts.tokens.sum() == mask.sum()


def test_co_activation_counts_all_pairs():
    # one token on experts 0, 1, 2 in the order 2, 0, 1: all three pairs, not only the neighbours (2, 0) and (0, 1);
    # another token on 0 and 2; n = (2, 1, 2)
    pairs = m.co_activation(torch.tensor([[2, 0, 1], [0, 2, -1]]), 3)
    assert pairs.tolist() == [[2, 1, 2], [1, 1, 1], [2, 1, 2]]
    assert pairs.dtype == torch.int64


def test_co_activation_without_padding_and_per_layer():
    assert m.co_activation(IDS, 3, MASK).tolist() == [[1, 0, 1], [0, 0, 0], [1, 0, 2]]
    layers = torch.stack([IDS, IDS[:, :1].expand(-1, 2)])
    assert torch.equal(m.co_activation(layers, 3), torch.stack([m.co_activation(ids, 3) for ids in layers]))
    assert m.co_activation(IDS[:0], 2).tolist() == [[0, 0], [0, 0]]


@UNTIMED
@given(routing=routings())
def test_co_activation_against_sets(routing):
    num_experts, ids = routing
    sets = [set(row) for row in ids.tolist()]
    expected = [[sum({i, j} <= s for s in sets) for j in range(num_experts)] for i in range(num_experts)]
    pairs = m.co_activation(ids, num_experts)
    assert pairs.tolist() == expected
    assert torch.equal(pairs.diagonal(), m.tokens_per_expert(ids, num_experts))


def test_sum_counts_adds_batches():
    batches = [torch.tensor([3, 1]), torch.tensor([0, 4])]
    assert m.sum_counts(batches).tolist() == [3, 5]
    assert m.sum_counts(iter(batches)).tolist() == [3, 5]
    assert m.sum_counts(torch.stack(batches)).tolist() == [3, 5]
    assert m.sum_counts([torch.tensor([0.5, 0.25])] * 2).tolist() == [1.0, 0.5]
    with pytest.raises(ValueError, match="counts is empty"):
        m.sum_counts([])


def test_sum_counts_neither_overflows_nor_aliases():
    one = torch.tensor([2**31 - 1], dtype=torch.int32)
    assert m.sum_counts([one, one]).item() == 2**32 - 2
    long = torch.tensor([5])
    m.sum_counts([long]).add_(1)
    assert long.item() == 5


def test_max_violation_per_batch_and_global():
    # batches (3, 1) and (1, 3): 3/2 − 1 = 0.5 each, while the sum (4, 4) is balanced
    counts_BE = torch.tensor([[3, 1], [1, 3]])
    assert m.max_violation(counts_BE).tolist() == [0.5, 0.5]
    assert m.max_violation(m.sum_counts(counts_BE)).item() == 0.0


@UNTIMED
@given(rows=st.lists(st.lists(st.integers(0, 50), min_size=4, max_size=4), min_size=1, max_size=6))
def test_global_max_violation_is_never_above_the_worst_batch(rows):
    counts_BE = torch.tensor(rows)
    assert m.max_violation(m.sum_counts(counts_BE)) <= m.max_violation(counts_BE).max() + 1e-9


def _count_on_rank(rank: int, store: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    # rank 0 saw batches (4, 0) and (2, 0), rank 1 one batch (0, 6)
    batches = [torch.tensor([4, 0]), torch.tensor([2, 0])] if rank == 0 else [torch.tensor([0, 6])]
    torch.save((m.sum_counts(batches, group=dist.group.WORLD), batches), f"{out}{rank}")
    dist.destroy_process_group()


def test_sum_counts_adds_ranks_before_any_ratio(tmp_path):
    spawn(_count_on_rank, (str(tmp_path / "store"), str(tmp_path / "out")), nprocs=2)
    for rank in range(2):
        total, batches = torch.load(tmp_path / f"out{rank}")
        assert total.tolist() == [6, 6]
        assert m.max_violation(total).item() == 0.0  # the mean of the ranks' own figures would be 1
        assert batches[0].tolist() == ([4, 0], [0, 6])[rank]
