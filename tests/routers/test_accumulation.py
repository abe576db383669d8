"""State after gradient accumulation: exactly the whole batch's where counts add up, and said so where it cannot be."""

import re
from pathlib import Path

import pytest
import torch

import gatelab

D, E = 16, 8
EXACT = {"loss-free", "longcat-flash", "remoe", "skywork-moe", "deepseek-v3", "deepseek-v4", "kimi-k2"}
# Solutions of micro-batches, averaged: the mean of quantiles is not the quantile, nor are prices linear.
AVERAGED = {"balanced-assignment", "base", "bip", "quantile-balancing", "expert-threshold"}


def stateful() -> set[str]:
    names = set(gatelab.list_routers()) - {"replay"}
    return {name for name in names if gatelab.create_router(name, D, E, device="meta").train().guarantees.stateful}


def made(name: str) -> gatelab.Router:
    # Drops depend on who is in the batch, so the gate with a capacity is compared row by row.
    options = {"group": "sequence", "initial": 0.002} if name == "skywork-moe" else {}
    return gatelab.create_router(name, D, E, 2, **options)


def docs(name: str) -> list[str]:
    """Of the parts that have state, on one line each."""
    return [" ".join((type(part).__doc__ or "").split()) for part in made(name).balance if part.stateful]


def states(name: str, pieces: int) -> tuple[dict, dict]:
    """State after four steps, over whole batches and over micro-batches of the same rows."""
    torch.manual_seed(0)
    whole, parts = (made(name) for _ in range(2))
    parts.load_state_dict(whole.state_dict())
    for step in range(4):
        x = torch.randn(8, 24, D, generator=torch.Generator().manual_seed(step)) + 1
        mask = torch.rand(8, 24, generator=torch.Generator().manual_seed(99 + step)) < 0.8
        with gatelab.record(whole) as tape:
            whole(x, token_mask=mask, token_ids=torch.zeros(8, 24, dtype=torch.int64))
        gatelab.update_routers(tape)
        tapes = []
        for rows, row_mask in zip(x.chunk(pieces), mask.chunk(pieces), strict=True):
            with gatelab.record(parts) as tape:
                parts(rows, token_mask=row_mask, token_ids=torch.zeros(*row_mask.shape, dtype=torch.int64))
            tapes.append(tape)
        gatelab.update_routers(*tapes)
    return {**whole.state_dict()}, {**parts.state_dict()}


def test_every_stateful_gate_is_in_one_of_the_two_lists():
    assert stateful() == EXACT | AVERAGED


@pytest.mark.parametrize(("mark", "names"), [("exact", EXACT), ("averaged", AVERAGED)])
def test_the_page_on_training_has_both_lists(mark, names):
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    said = page.partition(f"<!-- {mark} -->")[2].partition(f"<!-- /{mark} -->")[0]
    assert set(re.findall(r"`([^`]+)`", said)) == names


@pytest.mark.parametrize("name", sorted(EXACT))
def test_counts_add_up_to_the_whole_batch_exactly(name):
    whole, parts = states(name, pieces=4)
    start = made(name).state_dict()
    moved = [key for key in whole if key.startswith("balance") and not torch.equal(whole[key], start[key])]
    assert moved, "nothing moved: nothing was tested"
    for key, value in whole.items():
        assert torch.equal(value, parts[key]), key
    assert all("is that of the whole batch" in doc for doc in docs(name))


@pytest.mark.parametrize("name", sorted(AVERAGED))
def test_averaged_solutions_are_close_and_the_docs_say_that_they_differ(name):
    whole, parts = states(name, pieces=2)
    assert any(not torch.equal(value, parts[key]) for key, value in whole.items())
    for key, value in whole.items():
        torch.testing.assert_close(value, parts[key], rtol=0.2, atol=0.3)
    assert all(re.search(r"(is not|differs from) the \w+ of the whole batch", doc) for doc in docs(name))
