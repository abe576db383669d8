"""`sinkhorn` in Triton's interpreter."""

import pytest
import torch
from against_reference import TOLERANCE, randn

from gatelab import kernels
from gatelab.kernels.triton import sinkhorn as module


def assert_agrees(scores, iterations=4, token_mask=None):
    with kernels.use("triton"):
        plan = kernels.sinkhorn(scores, iterations=iterations, token_mask=token_mask)
    with kernels.use("reference"):
        expected = kernels.sinkhorn(scores.double(), iterations=iterations, token_mask=token_mask)
    assert plan.dtype == torch.promote_types(scores.dtype, torch.float32)
    finite = expected.isfinite()
    assert plan.isfinite().equal(finite)
    assert torch.equal(plan[~finite].double(), expected[~finite])
    largest = float(expected[finite].abs().max()) if finite.any() else 0.0
    atol = TOLERANCE[plan.dtype] * largest
    torch.testing.assert_close(plan[finite].double(), expected[finite], rtol=0, atol=atol)


@pytest.mark.parametrize(("T", "E"), [(0, 3), (1, 1), (1, 4), (17, 5), (5, 1), (600, 60), (40, 128)])
def test_sizes(T, E):
    assert_agrees(3 * randn(T, E))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_dtypes(dtype):
    assert_agrees(3 * randn(33, 5, dtype=dtype), iterations=16)


def test_columns_are_summed_over_many_shares(monkeypatch):
    # E = 300 makes blocks of 4 tokens: 10 of them in 3 shares of 4, 4 and 2
    monkeypatch.setattr(module, "_MOST_SHARES", 3)
    assert_agrees(3 * randn(39, 300))


def test_masked_rows_take_no_part():
    mask = torch.arange(37) % 3 > 0
    scores = torch.where(mask[:, None], 3 * randn(37, 4), torch.nan)
    assert_agrees(scores, token_mask=mask)
    with kernels.use("triton"):
        log_plan = kernels.sinkhorn(scores, token_mask=mask)
        torch.testing.assert_close(log_plan[mask], kernels.sinkhorn(scores[mask]))
        assert bool((kernels.sinkhorn(scores, token_mask=torch.zeros(37)) == -torch.inf).all())


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_large_scores_do_not_overflow(scale):
    assert_agrees(scale * randn(17, 6))


def test_strided_scores_are_not_changed():
    scores = randn(6, 40).t()[:, ::2]
    before = scores.clone()
    assert_agrees(scores)
    assert torch.equal(scores, before)


def test_compiles_without_a_graph_break():
    torch._dynamo.reset()
    scores = randn(9, 4)
    with kernels.use("triton"):
        compiled = torch.compile(kernels.sinkhorn, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(scores, iterations=2), kernels.sinkhorn(scores, iterations=2))
