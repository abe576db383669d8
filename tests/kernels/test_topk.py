"""`topk`: bit by bit `torch.topk`, with ties, infinities and NaN, whatever computes it."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelab import kernels
from gatelab.kernels.cpu import _plain


def scores(T, E, kind, seed=0):
    generator = torch.Generator().manual_seed(seed)
    s = torch.randn(T, E, generator=generator)
    if kind == "rounded":  # −2, −1, −0, 0, 1 …: nearly every row has ties
        s = s.round() * torch.where(torch.rand(T, E, generator=generator) < 0.5, -1.0, 1.0)
    if kind == "bfloat16":
        s = s.bfloat16().float()
    if kind == "special":
        for value in (-torch.inf, torch.inf, torch.nan):
            s[torch.rand(T, E, generator=generator) < 0.02] = value
    return s


# 2¹⁴ scores and more run in numba; 61 is no multiple of a register's 8 lanes; k = E leaves no one out.
@pytest.mark.parametrize(("T", "E", "k"), [(300, 64, 6), (300, 61, 15), (3000, 8, 8), (20000, 1, 1)])
@pytest.mark.parametrize("kind", ["distinct", "rounded", "bfloat16", "special"])
def test_it_chooses_as_torch_does(T, E, k, kind):
    assert _plain.rows_in_numba() is not None
    s = scores(T, E, kind)
    assert torch.equal(kernels.topk(s, k), s.topk(k).indices)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.data())
def test_it_chooses_as_torch_does_at_any_size(seed, E, data):
    k = data.draw(st.integers(1, min(E, 15)))
    s = scores(2**14 // E + 1, E, "distinct", seed)
    assert torch.equal(kernels.topk(s, k), s.topk(k).indices)


@pytest.mark.parametrize("view", [lambda s: s.t(), lambda s: s[:, ::2], lambda s: s[:1].expand(300, 300)])
def test_strides(view):
    s = view(scores(300, 300, "distinct"))
    assert torch.equal(kernels.topk(s, 5), s.topk(5).indices)


def test_by_hand_among_many():
    # Row t holds t·[0, 1, 2, … 63] / 63: ever larger ids from t = 1 on.
    s = torch.arange(1.0, 301)[:, None] * torch.linspace(0, 1, 64)
    assert torch.equal(kernels.topk(s, 3), torch.tensor([63, 62, 61]).expand(300, 3))


def test_zeros_of_either_sign_are_equal_and_nan_of_either_sign_is_greatest():
    # Distinct negative numbers, and one pair at the edge of what is chosen, at places that change from row to row.
    s = -1 - torch.rand(300, 64, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(300)
    signed = s.clone()
    signed[rows, rows % 64], signed[rows, (7 * rows + 1) % 64] = -0.0, 0.0
    assert torch.equal(kernels.topk(signed, 1), signed.topk(1).indices)
    s[rows, rows % 64] = torch.tensor(torch.nan).neg()  # its sign bit set
    assert torch.equal(kernels.topk(s, 1)[:, 0], rows % 64)


def test_scores_that_need_a_gradient_and_compiled():
    s = scores(300, 64, "distinct").requires_grad_()
    expected = s.topk(6).indices
    assert torch.equal(kernels.topk(s, 6), expected)
    compiled = torch.compile(kernels.topk, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(s, 6), expected)


def test_without_numba_torch_answers(monkeypatch):
    monkeypatch.setitem(sys.modules, "gatelab.kernels.cpu._gate_rows", None)
    _plain.rows_in_numba.cache_clear()
    try:
        assert _plain.rows_in_numba() is None
        s = scores(300, 64, "rounded")
        ids = kernels.topk(s, 6)
        assert torch.equal(ids, s.topk(6).indices)
        order, offsets = kernels.group_by_expert(ids, 64)
    finally:
        monkeypatch.undo()
        _plain.rows_in_numba.cache_clear()
    with_numba = kernels.group_by_expert(ids, 64)
    assert torch.equal(order, with_numba[0])
    assert torch.equal(offsets, with_numba[1])
