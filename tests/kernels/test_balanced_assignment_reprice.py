"""Sets after a change of prices, from entries near the borders alone: the same as from all scores, or none at all."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatelab.kernels.cpu._assignment_near import choose_near, windows
from gatelab.kernels.cpu._assignment_reprice import reprice
from gatelab.kernels.cpu._assignment_rows import Scores, choose, not_top_k

UNIT = 2.0**-36


def draw(family, T, E, rng):
    match family:
        case "tied":
            values = rng.integers(0, 4, (T, E)).astype(float)
        case "constant":
            values = np.zeros((T, E))
        case "rank-1":
            values = rng.standard_normal((T, 1)) * rng.standard_normal(E)
        case "duplicated":
            values = rng.standard_normal((T, E))[rng.integers(0, max(1, T // 8), T)]
        case _:
            values = rng.standard_normal((T, E))
    return Scores(np.rint(values / UNIT) * UNIT, 1.5 * 2.0**52 * UNIT, -np.inf)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    family=st.sampled_from(["normal", "tied", "constant", "rank-1", "duplicated"]),
    T=st.integers(1, 80),
    E=st.integers(2, 20),
    k=st.integers(1, 8),
    size=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]),
    whole=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_repriced_sets_are_top_k_and_what_is_not_listed_is_beyond_the_windows(family, T, E, k, size, whole, seed):
    k = min(k, E - 1)
    rng = np.random.default_rng(seed)
    scores, upper = draw(family, T, E, rng), np.full(E, -(-k * T // E))
    prices = np.rint(rng.standard_normal(E)) if whole else np.zeros(E)
    # as far as the widest windows allow, and farther
    change = size * rng.uniform(-1, 1, E)
    change = np.rint(change) if whole else np.rint(change / UNIT) * UNIT
    window = windows(scores, k, prices) if rng.random() < 0.5 else np.rint(rng.uniform(0, 4, E))
    ids, loads, near = choose_near(scores, k, prices, upper, window)
    n = near.start[-1]
    before = window.copy(), ids.copy(), loads.copy(), near.expert[:n].copy(), near.value[:n].copy()
    valid = reprice(near, window, change, ids, loads)
    assert valid == (np.maximum(change.max() - change, change - change.min()) <= before[0]).all()
    if not valid:
        after = window, ids, loads, near.expert[:n], near.value[:n]
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
        return
    assert not_top_k(scores, prices + change, ids) == 0
    assert np.array_equal(loads, np.bincount(ids.ravel(), minlength=E))
    values = scores.values - (prices + change)
    best = np.sort(values, axis=1)[:, ::-1]
    for t in range(T):
        held = np.isin(np.arange(E), ids[t])
        margin = np.where(held, values[t] - best[t, k], best[t, k - 1] - values[t])
        entries = near.expert[near.start[t] : near.start[t + 1]]
        assert set(np.flatnonzero(margin < window)) <= set(entries)
        assert held[entries[: near.held[t]]].all()
        assert not held[entries[near.held[t] :]].any()
        listed = near.value[near.start[t] : near.start[t + 1]] - scores.magic
        assert np.array_equal(listed, values[t, entries])


def test_repriced_loads_by_hand():
    # Three tokens prefer expert 0 by 1, 2 and 3: a price of 1.5 moves the first, and windows of 2 are wide enough.
    scores = Scores(np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]), 1.5 * 2.0**52 * UNIT, -np.inf)
    window, even = np.full(2, 2.0), np.full(2, 2)
    ids, loads, near = choose_near(scores, 1, np.zeros(2), even, window)
    assert loads.tolist() == [3, 0]
    assert reprice(near, window, np.array([1.5, 0.0]), ids, loads)
    assert ids.tolist() == [[1], [0], [0]]
    assert loads.tolist() == [2, 1]
    assert window.tolist() == [0.5, 0.5]
    assert ids.tolist() == choose(scores, 1, np.array([1.5, 0.0]), even)[0].tolist()
    # from there another 0.75 goes too far
    assert not reprice(near, window, np.array([0.75, 0.0]), ids, loads)
