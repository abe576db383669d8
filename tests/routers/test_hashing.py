"""Routing by token id."""

import pytest
import torch

import gatelab
from gatelab.routers.select import HashTable, balanced_table, random_table


def test_the_table_decides():
    table = torch.tensor([[2, 0], [1, 2], [0, 1]])
    router = gatelab.create_router("hash", 4, 3, 2, table=table)
    routing = router(torch.randn(1, 4, 4), token_ids=torch.tensor([[1, 0, 2, 1]]))
    weights, ids = routing.topk()
    assert ids.tolist() == [[1, 2], [2, 0], [0, 1], [1, 2]]
    assert weights.eq(0.5).all()
    assert not routing.router_logits.any()
    assert gatelab.create_router("hash", 4, 3)(torch.randn(2, 4), token_ids=torch.tensor([5, 5])).weights.tolist() == [
        1,
        1,
    ]


def test_padding_needs_no_token_id():
    router = gatelab.create_router("hash", 4, 3, vocab_size=10)
    ids, mask = torch.tensor([[-100, 3]]), torch.tensor([[False, True]])
    assert router(torch.randn(1, 2, 4), token_ids=ids, token_mask=mask).experts_per_token.tolist() == [0, 1]


@pytest.mark.parametrize("name", ["hash", "deepseek-v4"])
def test_errors(name):
    options = {"hashed": True} if name == "deepseek-v4" else {}
    router = gatelab.create_router(name, 4, 3, 2, vocab_size=10, **options)
    with pytest.raises(ValueError, match="token_ids is missing; this gate routes by token id"):
        router(torch.randn(2, 4))
    for bad in (10, -1):
        with pytest.raises(ValueError, match=f"token_ids holds {bad}; the table has rows 0 to 9"):
            router(torch.randn(2, 4), token_ids=torch.tensor([3, bad]))
    with pytest.raises(ValueError, match="table names an expert twice for token id 1"):
        gatelab.create_router(name, 4, 3, 2, table=torch.tensor([[0, 1], [2, 2]]), **options)
    with pytest.raises(ValueError, match="table has 2 experts per token id; pass top_k=2 with it"):
        gatelab.create_router(name, 4, 3, 1, table=torch.tensor([[0, 1]]), **options)
    with pytest.raises(ValueError, match="table holds ids from 0 to 3; use 0 to 2"):
        HashTable(torch.tensor([[0, 3]]), 3)
    with pytest.raises(ValueError, match="pass \\(V, K\\) expert ids"):
        HashTable(torch.tensor([0.0]), 3)


def test_a_random_table_is_uniform_over_sets():
    torch.manual_seed(0)
    table = random_table(60000, 5, 3)
    # 60 ordered triples of 5 experts, 1000 of each: a standard deviation of 31
    counts = torch.bincount(table @ torch.tensor([25, 5, 1]))
    assert int((counts > 0).sum()) == 60
    assert int(counts[counts > 0].min()) > 850
    assert int(counts.max()) < 1150
    torch.manual_seed(0)
    assert torch.equal(random_table(60000, 5, 3), table)
    assert random_table(7, 3, 3).sort(1).values.tolist() == [[0, 1, 2]] * 7


def test_a_balanced_table_spreads_the_frequent():
    # 5, 4, 3, 3, 3 on two experts: 5 → 0, 4 → 1, 3 → 1 (4 < 5), 3 → 0 (5 < 7), 3 → 1 (7 < 8): loads 8 and 10
    assert balanced_table([3, 5, 4, 3, 3], 2).tolist() == [[1], [0], [1], [0], [1]]
    # pairs of three: {0, 1}, then the empty one first: {2, 0}, {2, 1} at loads 5, 5, 0 → 9, 5, 4 → 9, 8, 7
    assert balanced_table([5, 4, 3], 3, 2).tolist() == [[0, 1], [2, 0], [2, 1]]
    frequencies = 1 / torch.arange(1.0, 2001)
    loads = torch.zeros(8).index_add(0, balanced_table(frequencies, 8)[:, 0], frequencies)
    assert float(loads.max() / loads.mean()) < 1.01
    router = gatelab.create_router("hash", 4, 8, frequencies=frequencies)
    assert torch.equal(router.select.table, balanced_table(frequencies, 8))


def test_the_table_is_saved_and_moves_with_the_gate():
    router = gatelab.create_router("hash", 4, 8, vocab_size=20)
    assert router.state_dict()["select.table"].shape == (20, 1)
    assert router.to(torch.bfloat16).select.table.dtype == torch.int64
    assert gatelab.create_router("hash", 4, 8, device="meta").select.table.device.type == "meta"
