"""Sinkhorn's scaling."""

import math

import pytest
import torch

from gatelab import kernels


def plainly_scaled(scores: torch.Tensor, iterations: int) -> torch.Tensor:
    """The textbook loop on exp(scores) in float64: the oracle."""
    K = scores.double().exp()
    T, E = K.shape
    row, column = torch.ones(T, dtype=torch.float64), torch.ones(E, dtype=torch.float64)
    for _ in range(iterations):
        row = 1 / T / (K @ column)
        column = 1 / E / (K.T @ row)
    return row[:, None] * K * column


def test_a_two_by_two_plan():
    # exp(scores) = [[1, 1], [1, 3]]. Scaling keeps the cross ratio 3, and marginals of 1/2 leave [[a, ½−a], [½−a, a]]:
    # a² = 3 (½ − a)², so a = √3/2 / (1 + √3) = 0.31699.
    plan = kernels.sinkhorn(torch.tensor([[0.0, 0], [0, math.log(3)]]), iterations=50).exp()
    a = math.sqrt(3) / 2 / (1 + math.sqrt(3))
    torch.testing.assert_close(plan, torch.tensor([[a, 0.5 - a], [0.5 - a, a]]))


@pytest.mark.parametrize(("T", "E", "iterations"), [(7, 3, 1), (40, 5, 4), (33, 16, 16), (1, 4, 2), (5, 1, 3)])
def test_it_agrees_with_the_textbook_loop(T, E, iterations):
    scores = 3 * torch.randn(T, E, generator=torch.Generator().manual_seed(T))
    plan = kernels.sinkhorn(scores, iterations=iterations).exp()
    torch.testing.assert_close(plan.double(), plainly_scaled(scores, iterations), rtol=1e-4, atol=1e-9)


def test_marginals_and_the_order_inside_a_row():
    scores = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)) + torch.arange(8.0)
    log_plan = kernels.sinkhorn(scores)
    torch.testing.assert_close(log_plan.exp().sum(0), torch.full((8,), 1 / 8))
    torch.testing.assert_close(log_plan.exp().sum(1), torch.full((200,), 1 / 200))
    # One number per column was added, up to one per row: minus the prices.
    added = log_plan - scores
    torch.testing.assert_close(added - added[:, :1], (added - added[:, :1])[:1].expand(200, 8), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e2, 1e4, 1e30])
def test_large_scores_neither_overflow_nor_tie(scale):
    scores = scale * torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    log_plan = kernels.sinkhorn(scores)
    assert bool(log_plan.isfinite().all())
    if scale:
        assert all(len(row.unique()) == 6 for row in log_plan)


def test_masked_rows_take_no_part():
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(30, 4, generator=generator)
    mask = torch.rand(30, generator=generator) < 0.6
    poisoned = torch.where(mask[:, None], scores, torch.nan)
    log_plan = kernels.sinkhorn(poisoned, token_mask=mask.long())
    torch.testing.assert_close(log_plan[mask], kernels.sinkhorn(scores[mask]))
    assert bool((log_plan[~mask] == -torch.inf).all())


def test_no_token_at_all():
    assert kernels.sinkhorn(torch.zeros(0, 3)).shape == (0, 3)
    log_plan = kernels.sinkhorn(torch.zeros(2, 3), token_mask=torch.zeros(2))
    assert bool((log_plan == -torch.inf).all())


def test_half_precision_is_computed_in_float32():
    scores = torch.randn(20, 4, generator=torch.Generator().manual_seed(3)).bfloat16()
    assert torch.equal(kernels.sinkhorn(scores), kernels.sinkhorn(scores.float()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": torch.zeros(3)}, "scores"),
        ({"scores": torch.zeros(3, 0)}, "scores"),
        ({"scores": torch.zeros(3, 2, dtype=torch.int64)}, "scores"),
        ({"scores": torch.zeros(3, 2), "token_mask": torch.ones(2)}, "token_mask"),
        ({"scores": torch.zeros(3, 2), "iterations": 0}, "iterations=0"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        kernels.sinkhorn(**arguments)
