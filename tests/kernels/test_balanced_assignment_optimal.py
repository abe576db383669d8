"""`balanced_assignment` is optimal: against other solvers on small problems, against the dual bound on large ones."""

import networkx
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, linear_sum_assignment, milp

from gatelab.kernels import Assignment, balanced_assignment, use

FAMILIES = (
    "normal",
    "skewed",
    "clustered",
    "tied",
    "constant",
    "duplicated",
    "rank-1",
    "geometric",
    "bfloat16",
    "masked",
    "outlier",
)
examples = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def draw_scores(family: str, T: int, E: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((T, E))
    match family:
        case "skewed":
            scores = noise + 3 * rng.standard_normal(E)
        case "clustered":
            scores = 4 * rng.standard_normal((5, E))[rng.integers(0, 5, T)] + 0.1 * noise
        case "tied":
            scores = rng.integers(-3, 4, (T, E))
        case "constant":
            scores = np.full((T, E), 2.5)
        case "duplicated":
            scores = noise[rng.integers(0, max(1, T // 8), T)]
        case "rank-1":
            scores = rng.standard_normal((T, 1)) * rng.standard_normal((1, E))
        case "geometric":
            scores = 0.1 * noise + np.geomspace(1, 1e3, E)
        case "masked":
            scores = np.where(rng.random((T, E)) < 0.5, -np.inf, noise)
            scores[np.arange(T), rng.integers(0, E, T)] = 0.0  # never a row of −inf
        case "outlier":
            scores = np.where(rng.random((T, E)) < 0.1, 1e4 * noise, noise)
        case _:
            scores = noise
    scores = torch.from_numpy(np.ascontiguousarray(scores)).float()
    return scores.bfloat16() if family == "bfloat16" else scores


def loads_of(found: Assignment, E: int) -> np.ndarray:
    return found.expert_ids.flatten().bincount(minlength=E).numpy()


def check_answer(scores: torch.Tensor, found: Assignment, lower: np.ndarray, upper: np.ndarray, k: int) -> None:
    """Bounds, k distinct experts a token, `value` as the sum over the ids, and gap 0."""
    T, E = scores.shape
    loads = loads_of(found, E)
    assert (lower <= loads).all()
    assert (loads <= upper).all()
    ids = found.expert_ids.sort(dim=1).values
    assert ids.shape == (T, k)
    assert (ids[:, 1:] > ids[:, :-1]).all()
    chosen = scores.double().gather(1, found.expert_ids)
    assert found.num_forbidden == chosen.isneginf().sum()
    # float64 sums in two orders
    assert float(found.value) == pytest.approx(float(chosen[chosen > -np.inf].sum()), rel=1e-12, abs=1e-9)
    assert found.gap == 0


def dual_bound(scores: torch.Tensor, prices: torch.Tensor, lower: np.ndarray, upper: np.ndarray, k: int) -> float:
    """No assignment is worth more: each token's best k at these prices, plus the dearest loads within the bounds."""
    per_token = (scores.double() - prices).topk(k, dim=1).values.sum()
    p, rest = prices.numpy(), k * len(scores) - lower.sum()
    earned = (lower * p).sum()
    for e in np.argsort(-p):
        units = min(rest, upper[e] - lower[e])
        earned, rest = earned + units * p[e], rest - units
    return float(per_token + earned)


def floor_and_ceil(T: int, E: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full(E, k * T // E), np.full(E, -(-k * T // E))


def optimum(scores: np.ndarray, lower: np.ndarray, upper: np.ndarray, k: int) -> tuple[int, float]:
    """The fewest forbidden pairs, and the most that can be had with them, by mixed-integer programming."""
    T, E = scores.shape
    forbidden = np.isneginf(scores).ravel()
    worth = np.where(forbidden, 0.0, scores.ravel())
    constraints = [
        LinearConstraint(sparse.kron(sparse.eye(T), np.ones((1, E))), k, k),
        LinearConstraint(sparse.kron(np.ones((1, T)), sparse.eye(E)), lower, upper),
    ]
    if forbidden.any():
        fewest = milp(forbidden.astype(float), constraints=constraints, bounds=Bounds(0, 1), integrality=1)
        constraints.append(LinearConstraint(forbidden[None].astype(float), 0, round(fewest.fun)))
    best = milp(-worth, constraints=constraints, bounds=Bounds(0, 1), integrality=1, options={"mip_rel_gap": 0.0})
    assert best.success, best.message
    return round(forbidden @ best.x), float(worth @ best.x.round())


@examples
@given(
    family=st.sampled_from(FAMILIES),
    T=st.integers(1, 40),
    E=st.integers(1, 9),
    k=st.integers(1, 9),
    loose=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
    backend=st.sampled_from(["cpu", "cpu", "reference"]),
)
def test_agrees_with_integer_programming(family, T, E, k, loose, seed, backend):
    k = min(k, E)
    scores = draw_scores(family, T, E, seed)
    lower, upper = floor_and_ceil(T, E, k)
    rng = np.random.default_rng(seed)
    lower = np.maximum(lower - rng.integers(0, loose + 1, E), 0)
    upper = np.minimum(upper + rng.integers(0, loose + 1, E), T)
    with use(backend):
        found = balanced_assignment(scores, k=k, capacity=(torch.from_numpy(lower), torch.from_numpy(upper)))
    check_answer(scores, found, lower, upper, k)
    num_forbidden, value = optimum(scores.double().numpy(), lower, upper, k)
    assert found.num_forbidden == num_forbidden
    # HiGHS stops at a feasibility tolerance of 1e-6
    assert float(found.value) == pytest.approx(value, rel=1e-6, abs=1e-5)


@examples
@given(
    T=st.integers(1, 20),
    E=st.integers(1, 6),
    k=st.integers(1, 6),
    largest=st.sampled_from([1, 3, 1000]),
    loose=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
    backend=st.sampled_from(["cpu", "reference"]),
)
def test_agrees_with_min_cost_flow(T, E, k, largest, loose, seed, backend):
    k = min(k, E)
    rng = np.random.default_rng(seed)
    scores = rng.integers(-largest, largest + 1, (T, E))
    lower, upper = floor_and_ceil(T, E, k)
    lower, upper = np.maximum(lower - rng.integers(0, loose + 1, E), 0), upper + loose
    # Tokens send k units; an expert keeps its lower bound and passes on up to upper − lower to the sink.
    flow = networkx.DiGraph()
    flow.add_node("sink", demand=int(k * T - lower.sum()))
    for e in range(E):
        flow.add_node(("expert", e), demand=int(lower[e]))
        flow.add_edge(("expert", e), "sink", weight=0, capacity=int(upper[e] - lower[e]))
    for t in range(T):
        flow.add_node(("token", t), demand=-k)
        for e in range(E):
            flow.add_edge(("token", t), ("expert", e), weight=-int(scores[t, e]), capacity=1)
    with use(backend):
        found = balanced_assignment(
            torch.from_numpy(scores).float(), k=k, capacity=(torch.from_numpy(lower), torch.from_numpy(upper))
        )
    assert found.value == -networkx.network_simplex(flow)[0]  # integers: exactly


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "masked"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_agrees_with_linear_sum_assignment(family, backend):
    T, E = 192, 12
    scores = draw_scores(family, T, E, seed=1)
    slots = scores.double().numpy().repeat(T // E, axis=1)  # one column a slot
    rows, columns = linear_sum_assignment(slots, maximize=True)
    with use(backend):
        found = balanced_assignment(scores)
    assert float(found.value) == pytest.approx(slots[rows, columns].sum(), rel=1e-12)


@examples
@given(
    family=st.sampled_from([family for family in FAMILIES if family != "masked"]),
    T=st.integers(0, 4096),
    E=st.sampled_from([1, 2, 3, 16, 61, 128, 256]),
    k=st.integers(1, 256),
    double=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_meets_the_dual_bound_at_any_size(family, T, E, k, double, seed):
    k = min(k, E, max(8, 16384 // (T + 1)))  # many experts a token where the tokens are few: a matter of time
    scores = draw_scores(family, T, E, seed)
    scores = scores.double() if double else scores
    found = balanced_assignment(scores, k=k)
    lower, upper = floor_and_ceil(T, E, k)
    check_answer(scores, found, lower, upper, k)
    size = float(scores.abs().sum()) if T else 0.0
    # sums of float64 of this size, and the grid, 2^-41 of the largest score at worst
    assert float(found.value) == pytest.approx(dual_bound(scores, found.prices, lower, upper, k), abs=1e-11 * size)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_below_the_grid_the_error_is_bounded(backend):
    # max|s| = 2^40, E = 16: the grid is u = 2^(41 − 49 + 4) = 1/16, far coarser than some of what is left.
    T, E = 64, 16
    scores = draw_scores("normal", T, E, seed=0).double()
    scores[5, 3] = 2.0**40
    with use(backend):
        found = balanced_assignment(scores)
    best = dual_bound(scores, found.prices, *floor_and_ceil(T, E, 1), 1)
    assert 0 < best - float(found.value) <= T / 16


@examples
@given(
    family=st.sampled_from(FAMILIES),
    T=st.integers(1, 600),
    E=st.integers(1, 40),
    k=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
# An over-full expert may take tokens for the hub before it gives its own: more members than its bound or its load.
@example(family="duplicated", T=161, E=36, k=1, seed=0)
@example(family="duplicated", T=97, E=13, k=1, seed=1)
def test_value_from_any_start_and_twice_the_same(family, T, E, k, seed):
    k = min(k, E)
    scores = draw_scores(family, T, E, seed)
    rng = np.random.default_rng(seed)
    start = torch.from_numpy(rng.standard_normal(E) * 10.0 ** rng.integers(-3, 6))
    found, again = balanced_assignment(scores, k=k), balanced_assignment(scores, k=k)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    try:
        elsewhere = balanced_assignment(scores, k=k)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(found, elsewhere, strict=True))
    for prices in (start, found.prices, found.prices.float()):
        other = balanced_assignment(scores, k=k, prices=prices)
        assert other.num_forbidden == found.num_forbidden
        # equal on the grid, summed in another order
        assert float(other.value) == pytest.approx(float(found.value), rel=1e-9, abs=1e-6)


@examples
@given(
    family=st.sampled_from(FAMILIES),
    T=st.integers(1, 300),
    E=st.integers(1, 24),
    k=st.integers(1, 4),
    masked=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_backends_agree(family, T, E, k, masked, seed):
    k = min(k, E)
    scores = draw_scores(family, T, E, seed)
    mask = torch.from_numpy(np.random.default_rng(seed).random(T) < 0.7) if masked else None
    with use("cpu"):
        fast = balanced_assignment(scores, k=k, token_mask=mask)
    with use("reference"):
        plain = balanced_assignment(scores, k=k, token_mask=mask)
    assert fast.num_forbidden == plain.num_forbidden
    assert float(fast.value) == pytest.approx(float(plain.value), rel=1e-9, abs=1e-6)
    if mask is not None:
        assert (fast.expert_ids[~mask] == -1).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_prices_make_top_k_of_the_scores(family):
    # evaluation of the gate: topk(s − p) is one of the optimal sets, so its worth at these prices is the same
    scores = draw_scores(family, 256, 16, seed=3).float()
    found = balanced_assignment(scores, k=2)
    reduced = scores.double() - found.prices
    if found.num_forbidden == 0:
        torch.testing.assert_close(reduced.gather(1, found.expert_ids), reduced.topk(2).values, rtol=0, atol=1e-8)
