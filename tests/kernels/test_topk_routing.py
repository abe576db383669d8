"""`topk_routing`: a worked example, the oracle with every option, ties and odd sizes, gradients, wrong arguments."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelab import kernels
from gatelab.kernels.cpu import _plain
from gatelab.kernels.topk_routing import is_one_pass


def test_worked_example():
    # Rows of 1/8: [1, 2, 5] and [4, 1, 3] choose 5, 2 and 4, 3; over their sums 7, times 2: 10/7, 4/7 and 8/7, 6/7.
    # Experts 0, 1 and 2 have tokens {1}, {0} and {0, 1}, as choices {0}, {1} and {0, 1}. Balance: 3 · Σ f P with
    # f = [1, 1, 2]/4 and P = [5, 3, 8]/16 is 3 · (5 + 3 + 16)/64 = 1.125.
    scores = torch.tensor([[1.0, 2, 5], [4, 1, 3]]) / 8
    found = kernels.topk_routing(scores, 2, weight="renormalize", scale=2.0)
    assert found.topk_ids.tolist() == [[2, 1], [0, 2]]
    torch.testing.assert_close(found.topk_weights, torch.tensor([[10.0, 4], [8, 6]]) / 7)
    assert found.token_index.tolist() == [1, 0, 0, 1]
    assert found.choice.tolist() == [0, 1, 0, 1]
    torch.testing.assert_close(found.weights, torch.tensor([8.0, 4, 10, 6]) / 7)
    assert found.expert_offsets.tolist() == [0, 1, 2, 4]
    assert found.requested.tolist() == [1, 1, 2]
    assert float(found.balance) == 1.125


def test_masked_tokens_are_the_tail():
    scores = torch.tensor([[0.1, 0.9], [0.5, 0.5], [0.7, 0.3]])
    found = kernels.topk_routing(scores, 1, token_mask=torch.tensor([True, False, True]))
    assert found.topk_ids.tolist() == [[1], [-1], [0]]
    assert found.token_index.tolist() == [2, 0, 1]
    torch.testing.assert_close(found.weights, torch.tensor([0.7, 0.9, 0]))
    assert found.expert_offsets.tolist() == [0, 1, 2]
    assert float(found.balance) == pytest.approx(1.0)  # f = [1, 1]/2, and P sums to 1


def inputs(T, E, kind, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(T, E, generator=generator)
    by = torch.randn(T, E, generator=generator)
    if kind == "rounded":  # nearly every row has ties
        scores, by = scores.round(), by.round()
    return scores, by, torch.rand(T, generator=generator) < 0.7


WEIGHTS = ("score", "renormalize", "softmax", "sigmoid")


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 9),
    st.integers(1, 40),
    st.data(),
    st.sampled_from(WEIGHTS),
    st.sampled_from(["distinct", "rounded"]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_equal_to_the_reference(T, E, data, weight, kind, is_masked, by_others, apart):
    k = data.draw(st.integers(1, E))
    scores, by, mask = inputs(T, E, kind, data.draw(st.integers(0, 99)))
    scores = scores if weight in ("softmax", "sigmoid") else scores.sigmoid()
    options = {"weight": weight, "eps": 0.5, "scale": 2.5, "token_mask": mask if is_masked else None}
    options |= {"by_TE": by} if by_others else {}
    assert is_one_pass(scores)
    # The same for both backends: made of the first derivative it would multiply how they round.
    turn = torch.linspace(-2, 1, T * E).view(T, E).cos()
    answers = []
    for backend in ("cpu", "reference"):
        s = scores.clone().requires_grad_()
        p = s.softmax(1) if apart else None
        with kernels.use(backend):
            found = kernels.topk_routing(s, k, probabilities_TE=p, **options)
        grow = torch.linspace(-1, 2, T * k)
        per_entry = (found.weights.square() * grow).sum()
        loss = per_entry + (found.topk_weights * grow.view(T, k).cos()).sum() + 3 * found.balance
        (first,) = torch.autograd.grad(loss, s, create_graph=True)  # differentiable
        (grad,) = torch.autograd.grad(loss, s, retain_graph=True)
        torch.testing.assert_close(first, grad)
        (second,) = torch.autograd.grad((first * turn).sum(), s)
        answers.append((*found, grad, second))
    for ours, expected in zip(*answers, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wanted", [("weights",), ("topk_weights",), ("balance",), ()])
def test_a_gradient_that_is_missing(wanted):
    scores, _, _ = inputs(7, 5, "distinct")
    grads = []
    for backend in ("cpu", "reference"):
        s = scores.clone().requires_grad_()
        with kernels.use(backend):
            found = kernels.topk_routing(s, 2, weight="softmax")
        # Beside what depends on the scores otherwise, as a gate's logits do.
        grads.append(torch.autograd.grad(s.sum() + sum(getattr(found, name).sum() for name in wanted), s))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("view", [lambda s: s.t(), lambda s: s[:, ::2], lambda s: s[:1].expand(30, 30)])
def test_strides(view):
    scores = view(inputs(30, 30, "distinct")[0].sigmoid())
    for ours, expected in zip(
        kernels.topk_routing(scores, 3, by_TE=scores), kernels.topk_routing(scores.contiguous(), 3), strict=True
    ):
        assert torch.equal(ours, expected)


def test_float64_a_compiled_call_and_no_numba(monkeypatch):
    scores = inputs(20, 12, "distinct")[0].sigmoid()
    expected = kernels.topk_routing(scores, 3, weight="renormalize")
    double = kernels.topk_routing(scores.double(), 3, weight="renormalize")
    assert double.weights.dtype == torch.float64
    compiled = torch.compile(kernels.topk_routing, fullgraph=True, backend="aot_eager")(scores, 3, weight="renormalize")
    monkeypatch.setitem(sys.modules, "gatelab.kernels.cpu._gate_rows", None)
    _plain.rows_in_numba.cache_clear()
    try:
        assert not is_one_pass(scores)
        without = kernels.topk_routing(scores, 3, weight="renormalize")
    finally:
        monkeypatch.undo()
        _plain.rows_in_numba.cache_clear()
    for found in (double, compiled, without):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, check_dtype=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores_TE": torch.zeros(3)}, "scores_TE"),
        ({"scores_TE": torch.zeros(3, 4, dtype=torch.int64)}, "scores_TE"),
        ({"k": 5}, "k=5"),
        ({"k": 0}, "k=0"),
        ({"weight": "mean"}, "weight='mean'"),
        ({"by_TE": torch.zeros(3, 3)}, "by_TE has shape"),
        ({"probabilities_TE": torch.zeros(4, 4)}, "probabilities_TE has shape"),
        ({"token_mask": torch.ones(4, dtype=torch.bool)}, "token_mask has shape"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        kernels.topk_routing(**{"scores_TE": torch.zeros(3, 4), "k": 2} | arguments)
