"""Prices: quantiles, sweeps, Sinkhorn, and the exact assignment they all approximate."""

import numpy as np
import pytest
import torch

import gatelab
from gatelab import Router, kernels
from gatelab.routers.balance import QuantilePrices, SweptPrices
from gatelab.routers.balance.quantile import expert_cutoff
from gatelab.routers.score import LinearScore
from gatelab.routers.select import TopK


def over_logits(name: str, E: int, k: int, **options) -> Router:
    """The recipe, with the hidden states as logits."""
    router = gatelab.create_router(name, E, E, k, **options)
    with torch.no_grad():
        router.score.weight.copy_(torch.eye(E))
    return router


def stepped(router: Router, *batches: torch.Tensor, **kwargs) -> torch.Tensor:
    """The prices after one step over these micro-batches."""
    with gatelab.record(router.train()) as tape:
        for x in batches:
            router(x, **kwargs)
    gatelab.update_routers(tape)
    return router.balance[0].prices.clone()


# Four tokens, two experts, k = 1: two tokens each are due.
SCORES = torch.tensor([[0.9, 0.5], [0.8, 0.7], [0.7, 0.2], [0.6, 0.4]])


def test_quantiles_by_hand():
    # a, the second largest of each row at β = 0: .5 .7 .2 .4. Column 1 less a: .4 .1 .5 .2, its third largest is .2.
    # Column 2 less a: 0 0 0 0, third largest 0. β = (.2, 0), centred (.1, −.1).
    router = over_logits("quantile-balancing", 2, 1)
    assert router(SCORES).tokens_per_expert.tolist() == [4, 0]
    torch.testing.assert_close(stepped(router, SCORES), torch.tensor([0.1, -0.1]))
    # z − β: (.8, .6) (.7, .8) (.6, .3) (.5, .5): experts 1, 2, 1 and a tie.
    assert router(SCORES[:3]).topk()[1].flatten().tolist() == [0, 1, 0]


def test_sweeps_by_hand():
    # The same numbers as probabilities: p = .5 .7 .2 .4 and q = (.2, 0) as above, no clamp bites. Second sweep:
    # s − q = (.7, .5) (.6, .7) (.5, .2) (.4, .4), second largest .5 .6 .2 .4; column 1 less p: .4 .2 .5 .2, third .2;
    # column 2: 0 .1 0 0, third 0: q stays.
    router = Router(
        score=lambda ctx: ctx.hidden_TD, activation="none", num_experts=2, select=TopK(1), balance=[SweptPrices(2, 1)]
    )
    torch.testing.assert_close(stepped(router, SCORES), torch.tensor([0.2, 0]))


def test_sweeps_only_press_down():
    # Every score is negative: p_t = max(0, ·) = 0, and q_i = max(0, third largest) = 0.
    router = Router(
        score=lambda ctx: ctx.hidden_TD, activation="none", num_experts=2, select=TopK(1), balance=[SweptPrices(2, 1)]
    )
    assert stepped(router, SCORES - 1).tolist() == [0, 0]


def plain_quantiles(z, k, prices):
    """β' in NumPy: sorted, not selected."""
    T, E = z.shape
    a = -np.sort(-(z - prices), axis=1)[:, k]
    return -np.sort(-(z - a[:, None]), axis=0)[k * T // E]


@pytest.mark.parametrize(("T", "E", "k"), [(64, 8, 2), (33, 5, 3), (7, 4, 1), (3, 16, 2), (1, 3, 1)])
def test_quantiles_agree_with_sorting(T, E, k):
    generator = torch.Generator().manual_seed(T)
    router = over_logits("quantile-balancing", E, k)
    prices = np.zeros(E)
    for _ in range(3):
        z = torch.randn(T, E, generator=generator)
        prices = plain_quantiles(z.double().numpy(), k, prices)
        prices = prices - prices.mean()
        torch.testing.assert_close(stepped(router, z).double(), torch.from_numpy(prices), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["quantile-balancing", "bip", "expert-threshold"])
def test_padding_is_left_out_of_the_quantiles(name):
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(2, 20, 5, generator=generator)
    mask = torch.rand(2, 20, generator=generator) < 0.6
    padded, plain = over_logits(name, 5, 2), over_logits(name, 5, 2)
    for router, x, m in ((padded, torch.where(mask[..., None], z, torch.nan), mask), (plain, z[mask], None)):
        with gatelab.record(router) as tape:
            router(x, token_mask=m)
        gatelab.update_routers(tape)
    a, b = (next(iter(router.balance[0].buffers())) for router in (padded, plain))
    torch.testing.assert_close(a, b)
    assert bool(a.any())


@pytest.mark.parametrize("name", ["quantile-balancing", "bip", "expert-threshold", "balanced-assignment"])
def test_a_batch_of_padding_moves_no_price(name):
    router = over_logits(name, 4, 2)
    z = torch.randn(1, 12, 4, generator=torch.Generator().manual_seed(4)) + torch.arange(4.0)
    with gatelab.record(router) as tape:
        router(z)
    gatelab.update_routers(tape)
    before = {key: value.clone() for key, value in router.state_dict().items()}
    for x, mask in ((z, torch.zeros(1, 12)), (z[:, :0], None)):
        with gatelab.record(router) as tape:
            router(x, token_mask=mask)
        gatelab.update_routers(tape)
    for key, value in router.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=1e-6, atol=1e-6)


def test_the_cutoff_is_what_the_share_exceeds():
    values = torch.randn(40, 8, generator=torch.Generator().manual_seed(5))
    cutoff = expert_cutoff(values, 3, None)
    assert (values > cutoff).sum(0).tolist() == [15] * 8  # 3 · 40 / 8
    mask = torch.arange(40) % 5 > 0  # 32 real tokens: 12 each
    assert (values[mask] > expert_cutoff(values, 3, mask)).sum(0).tolist() == [12] * 8


@pytest.mark.parametrize("part", [QuantilePrices(3, 3), SweptPrices(3, 3)])
def test_with_every_expert_chosen_there_is_nothing_to_price(part):
    router = Router(score=LinearScore(4, 3), select=TopK(3), balance=[part])
    assert stepped(router, torch.randn(1, 6, 4)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", ["quantile-balancing", "bip"])
def test_prices_select_and_do_not_weigh(name):
    router = over_logits(name, 4, 2).eval()
    router.balance[0].prices.copy_(torch.tensor([0.0, 5, 5, 0]))
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(6))
    routing = router(z)
    weights, ids = routing.topk()
    assert {tuple(sorted(row)) for row in ids.tolist()} == {(0, 3)}
    expected = z.softmax(1).gather(1, ids) if name == "bip" else z.sigmoid().gather(1, ids)
    if name == "quantile-balancing":
        expected = expected / expected.sum(1, keepdim=True)
    torch.testing.assert_close(weights, expected)


def test_quantiles_are_causal_in_training():
    assert over_logits("quantile-balancing", 4, 2).train().guarantees.causal
    assert not over_logits("bip", 4, 2).train().guarantees.causal


# --- Sinkhorn


def megatron_plan(z: torch.Tensor, tolerance: float = 1e-12) -> torch.Tensor:
    """The published loop, in float64 so that it neither overflows here nor stops early."""
    cost = z.double().exp()
    d0, d1 = torch.ones(cost.shape[0], dtype=torch.float64), torch.ones(cost.shape[1], dtype=torch.float64)
    error = 1.0
    while error > tolerance:
        d0 = 1 / len(d0) / (cost @ d1)
        new = 1 / len(d1) / (cost.T @ d0)
        error, d1 = float((new - d1).abs().mean() / new.mean()), new
    return d0[:, None] * cost * d1


@pytest.mark.parametrize("k", [1, 3])
def test_sinkhorn_routes_as_the_published_loop(k):
    z = torch.randn(200, 6, generator=torch.Generator().manual_seed(7)) + torch.arange(6.0) / 2
    router = over_logits("sinkhorn", 6, k, iterations=64).train()
    expected = torch.zeros(200, 6, dtype=torch.bool).scatter(1, megatron_plan(z).topk(k, 1).indices, True)
    routing = router(z)
    dense = routing.to_dense()
    assert torch.equal(dense > 0, expected)
    gates = z.sigmoid() if k == 1 else z.softmax(1)
    torch.testing.assert_close(dense, torch.where(expected, gates, 0))
    assert torch.equal(router.eval()(z).topk()[1], z.topk(k, 1).indices)


def test_sinkhorn_is_nearly_even_in_training_and_learns_through_its_weights():
    z = (torch.randn(512, 8, generator=torch.Generator().manual_seed(8)) + 2 * torch.arange(8.0)).requires_grad_()
    router = over_logits("sinkhorn", 8, 2)
    routing = router.train()(z)
    assert int(routing.tokens_per_expert.max()) <= 1.2 * 512 * 2 / 8
    assert int(router.eval()(z).tokens_per_expert.max()) > 3 * 512 * 2 / 8
    routing.weights.sum().backward()
    assert bool(z.grad.any())


def test_sinkhorn_survives_logits_that_overflow_upstream():
    routing = over_logits("sinkhorn", 4, 1).train()(
        200 * torch.randn(32, 4, generator=torch.Generator().manual_seed(9))
    )
    assert bool(routing.to_dense().isfinite().all())
    assert int(routing.tokens_per_expert.sum()) == 32


# --- one linear program


def dual_value(z: torch.Tensor, k: int, prices: torch.Tensor) -> float:
    """min over a of Σ max(0, z − a − β) + k Σ a + kT/E Σ β: no balanced assignment is worth more, whatever β."""
    T, E = z.shape
    z, prices = z.double(), prices.double()
    # The best a takes the k largest of each row of z − β in.
    return float((z - prices).topk(k, 1).values.sum() + k * T / E * prices.sum())


@pytest.mark.parametrize(
    ("name", "worse_by"), [("quantile-balancing", 1e-3), ("bip", 1e-2), ("balanced-assignment", 1e-6)]
)
def test_they_are_one_linear_program(name, worse_by):
    generator = torch.Generator().manual_seed(10)
    z = torch.randn(480, 6, generator=generator) + torch.randn(6, generator=generator)
    scores = z.softmax(1) if name == "bip" else z
    solved = kernels.balanced_assignment(scores, k=2)
    router = over_logits(name, 6, 2)
    unpriced = dual_value(scores, 2, torch.zeros(6))
    values = [dual_value(scores, 2, stepped(router, z)) for _ in range(30)]
    assert min(values) >= float(solved.value) * (1 - 1e-6), "below the optimum: the bound is wrong"
    assert values[-1] <= float(solved.value) * (1 + worse_by)
    assert unpriced > 1.05 * values[-1]


def offset_batches(offsets: int, updates: int):
    """The stationary stream: logits N(0, 1) plus offsets N(0, 1) drawn once; E = 16, T = 4096."""
    generator = torch.Generator().manual_seed(offsets)
    offset_E = torch.randn(16, generator=generator)
    for _ in range(updates):
        yield torch.randn(4096, 16, generator=generator) + offset_E


@pytest.mark.parametrize("offsets", range(3))
@pytest.mark.parametrize("name", ["bip", "quantile-balancing", "balanced-assignment"])
def test_a_stationary_stream_is_balanced_within_20_updates(name, offsets):
    router = over_logits(name, 16, 2)
    batches = offset_batches(offsets, 21)
    violations = []
    for z in batches:
        violations.append(max_violation(router.eval()(z)))  # by the prices of the batches before
        stepped(router, z)
    assert violations[0] > 2
    assert min(violations[:20]) < 0.1
    # What stays is chance: a load of 512 has a standard deviation of 21, and the largest of 16 is often 2 above.
    assert sum(violations[-10:]) / 10 < 0.15


@pytest.mark.parametrize("offsets", range(3))
def test_sweeps_on_the_batch_itself_do_not_drift(offsets):
    router = over_logits("bip", 16, 2).train()
    violations = []
    for z in offset_batches(offsets, 20):
        violations.append(max_violation(router(z)))
        stepped(router, z)
    assert max(violations[2:]) < 0.1


def max_violation(routing) -> float:
    load_E = routing.tokens_per_expert.double()
    return float(load_E.max() / load_E.mean() - 1)


def test_rows_of_padding_do_not_dilute_the_prices_of_the_assignment():
    z = torch.randn(3, 12, 4, generator=torch.Generator().manual_seed(12)) + torch.arange(4.0)
    mask = torch.ones(3, 12)
    mask[1] = 0
    prices = [
        stepped(over_logits("balanced-assignment", 4, 1, group="sequence"), x, token_mask=m)
        for x, m in ((z, mask), (z[[0, 2]], None))
    ]
    torch.testing.assert_close(*prices)
    assert bool(prices[0].any())
