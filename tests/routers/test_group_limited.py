"""Group-limited top-k by hand and against brute force."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gatelab
from gatelab import Context
from gatelab.routers.select import GroupLimitedTopK, fit_groups


def chosen(select, scores) -> list[list[int]]:
    scores = torch.as_tensor(scores)
    ctx = Context(torch.zeros(1, scores.shape[0], 2), num_experts=scores.shape[1])
    return select(scores, ctx).ids.tolist()


def test_what_makes_a_group_good():
    # groups (.9, .0), (.6, .5), (.4, .3): by maximum the first wins, by its two best the second (1.1 against .9, .7)
    scores = [[0.9, 0.0, 0.6, 0.5, 0.4, 0.3]]
    assert chosen(GroupLimitedTopK(2, 6, 3, 1, by="max"), scores) == [[0, 1]]
    assert chosen(GroupLimitedTopK(2, 6, 3, 1, by="two-best"), scores) == [[2, 3]]
    # two groups by maximum: the first two, of which .9 and .6 are best
    assert chosen(GroupLimitedTopK(2, 6, 3, 2, by="max"), scores) == [[0, 2]]


def test_negative_scores_beat_closed_groups():
    # biased scores may be negative; closed groups filled with 0 would win over -.1 and -.2
    scores = [[-0.1, -0.2, -0.5, -0.6]]
    assert chosen(GroupLimitedTopK(2, 4, 2, 1, by="max"), scores) == [[0, 1]]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    groups=st.integers(1, 4),
    size=st.integers(1, 3),
    by=st.sampled_from(["max", "two-best"]),
    data=st.data(),
)
def test_against_brute_force(seed, groups, size, by, data):
    E = groups * size
    keep = data.draw(st.integers(1, groups))
    k = data.draw(st.integers(1, keep * size))
    scores = torch.randn(5, E, generator=torch.Generator().manual_seed(seed))

    def goodness(row, g):
        best = sorted(row[g * size : (g + 1) * size], reverse=True)
        return sum(best[: 1 if by == "max" else 2])

    for row, ids in zip(scores.tolist(), chosen(GroupLimitedTopK(k, E, groups, keep, by=by), scores), strict=True):
        best = max(itertools.combinations(range(groups), keep), key=lambda gs: sum(goodness(row, g) for g in gs))
        experts = [e for g in best for e in range(g * size, (g + 1) * size)]
        assert ids == sorted(experts, key=lambda e: -row[e])[:k]


@given(E=st.integers(1, 64), k=st.integers(1, 64), groups=st.integers(1, 16), keep=st.integers(1, 16))
def test_published_groups_are_clipped_to_what_fits(E, k, groups, keep):
    k, keep = min(k, E), min(keep, groups)
    fitted, kept = fit_groups(E, k, groups, keep)
    GroupLimitedTopK(k, E, fitted, kept, by="max")
    if E % groups == 0 and k <= keep * (E // groups):
        assert (fitted, kept) == (groups, keep)


@pytest.mark.parametrize(
    ("name", "E", "k", "groups", "keep"),
    [
        ("deepseek-v2", 160, 6, 8, 3),
        ("deepseek-v3", 256, 8, 8, 4),
        ("deepseek-v3", 32, 4, 8, 4),
        ("deepseek-v3", 5, 5, 5, 5),
    ],
)
def test_defaults(name, E, k, groups, keep):
    select = gatelab.create_router(name, 8, E, None if E in (160, 256) else k, device="meta").select
    assert (select.k, select.num_groups, select.keep_groups) == (k, groups, keep)


def test_groups_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="num_groups=3 does not divide num_experts=8"):
        gatelab.create_router("deepseek-v3", 8, 8, 2, num_groups=3)
    with pytest.raises(ValueError, match="keep_groups=1 of 4 groups of 2 experts do not fit top_k=3"):
        gatelab.create_router("deepseek-v2", 8, 8, 3, num_groups=4, keep_groups=1)
    with pytest.raises(ValueError, match="by='sum' is unknown"):
        GroupLimitedTopK(1, 4, 2, 1, by="sum")  # pyright: ignore[reportArgumentType]
