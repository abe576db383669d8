"""`balanced_assignment`: worked examples, what it refuses, and how it behaves as an operator."""

import sys
import warnings

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gatelab.kernels import backend, balanced_assignment, use
from gatelab.kernels.cpu import balanced_assignment as cpu

INF = float("inf")


@pytest.fixture(params=["reference", "cpu"], autouse=True)
def solver(request):
    with use(request.param):
        yield request.param


def test_base_problem_by_hand():
    # Both tokens like expert 0 better. Token 0 there: 5 + 1 = 6; token 1 there: 4 + 3 = 7.
    found = balanced_assignment(torch.tensor([[5.0, 3.0], [4.0, 1.0]]))
    assert found.expert_ids.tolist() == [[1], [0]]
    assert found.value == 7
    assert found.gap == 0
    # Token 0 must not gain by changing: 3 − p1 >= 5 − p0; nor token 1: 4 − p0 >= 1 − p1. So 2 <= p0 − p1 <= 3.
    assert 2 <= found.prices[0] - found.prices[1] <= 3
    assert found.prices.sum() == 0


def test_two_experts_a_token_by_hand():
    # 3 tokens on 2 of 3 experts, 2 on each: every token leaves one expert out, and no two the same.
    # All scores sum to 34; leaving out experts 0, 2, 1 costs 1 + 1 + 2 = 4, any other way more.
    scores = torch.tensor([[1.0, 5.0, 5.0], [5.0, 5.0, 1.0], [5.0, 2.0, 5.0]])
    found = balanced_assignment(scores, k=2)
    assert found.value == 30
    assert found.expert_ids.sort(dim=1).values.tolist() == [[1, 2], [0, 1], [0, 2]]


def test_extra_slots_go_where_they_are_worth_most():
    # 3 tokens, 2 experts: loads 1 and 2, and expert 1 is worth more to every token.
    found = balanced_assignment(torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]]))
    assert found.expert_ids.tolist() == [[0], [1], [1]]
    assert found.value == 5


def test_capacity_as_upper_bounds_and_as_a_pair():
    scores = torch.tensor([[9.0, 0.0, 0.0]] * 6)
    assert balanced_assignment(scores, capacity=4).value == 36  # four of six on expert 0
    loads = balanced_assignment(scores, capacity=torch.tensor([5, 1, 1])).expert_ids.flatten().bincount(minlength=3)
    assert loads[0] == 5
    assert balanced_assignment(scores, capacity=(1, 6)).value == 36  # one each on experts 1 and 2
    pair = balanced_assignment(scores, capacity=(torch.tensor([0, 3, 0]), 6))
    assert pair.value == 27
    assert pair.expert_ids.flatten().bincount(minlength=3).tolist() == [3, 3, 0]


def test_masked_rows_leave_the_problem():
    scores = torch.tensor([[1.0, 0.0], [float("nan"), INF], [0.0, 1.0]])
    found = balanced_assignment(scores, token_mask=torch.tensor([1, 0, 1]))
    assert found.expert_ids.tolist() == [[0], [-1], [1]]
    assert found.value == 2


def test_forbidden_pairs_are_counted_and_left_out_of_the_value():
    # Three tokens may only go to expert 0, which holds two: one of them has to go where it must not.
    scores = torch.tensor([[5.0, -INF], [3.0, -INF], [1.0, -INF], [2.0, 2.0]])
    found = balanced_assignment(scores)
    assert found.num_forbidden == 1
    assert found.expert_ids.tolist() == [[0], [0], [1], [1]]
    assert found.value == 10
    with pytest.raises(ValueError, match="scores forbids too much: 1 pairs"):
        balanced_assignment(scores, strict=True)
    assert balanced_assignment(scores, capacity=3, strict=True).value == 11


def test_a_forbidden_pair_outweighs_any_score():
    # Avoiding −inf costs 2e4 here, and is still done.
    scores = torch.tensor([[1e4, 0.0], [1e4, -INF]])
    assert balanced_assignment(scores).expert_ids.tolist() == [[1], [0]]


def test_choices_come_best_first():
    scores = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    found = balanced_assignment(scores, k=3)
    reduced = (scores - found.prices).gather(1, found.expert_ids)
    assert (reduced[:, :-1] >= reduced[:, 1:]).all()


@pytest.mark.parametrize("T", [0, 1, 7])
@pytest.mark.parametrize(("E", "k"), [(1, 1), (3, 3), (9, 2)])
def test_small_shapes(T, E, k):
    scores = torch.arange(float(T * E)).reshape(T, E)
    found = balanced_assignment(scores, k=k)
    assert found.expert_ids.shape == (T, k)
    loads = found.expert_ids.flatten().bincount(minlength=E)
    assert loads.min() == k * T // E
    assert loads.max() == -(-k * T // E)
    assert found.prices.shape == (E,)
    assert found.gap == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_any_dtype_and_layout_leave_the_scores_alone(dtype):
    scores = torch.randn(8, 40, generator=torch.Generator().manual_seed(0)).to(dtype).T.requires_grad_()
    before = scores.detach().clone()
    found = balanced_assignment(scores)
    assert found.expert_ids.dtype == torch.int64
    assert found.prices.dtype == found.value.dtype == torch.float64
    assert not found.prices.requires_grad
    assert torch.equal(scores, before)
    assert found.value == balanced_assignment(scores.double()).value


def test_absurd_start_prices_change_nothing():
    scores = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    found = balanced_assignment(scores, prices=torch.tensor([1e30, -3.0, 0.0, 7.0]))
    assert found.value == balanced_assignment(scores).value


NAN = float("nan")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": torch.zeros(3)}, r"scores is torch.float32 of shape \(3,\)"),
        ({"scores": torch.zeros(3, 2, dtype=torch.int64)}, "scores is torch.int64"),
        ({"scores": torch.zeros(3, 0)}, "E > 0"),
        ({"scores": torch.tensor([[0.0, 1.0], [NAN, 0.0]])}, r"scores contains nan \(token 1\)"),
        ({"scores": torch.tensor([[0.0, 1.0], [INF, 0.0]])}, r"scores contains inf \(token 1\)"),
        ({"scores": torch.tensor([[0.0, 1.0], [-INF, -INF]])}, r"scores\[1\] is all -inf"),
        ({"scores": torch.tensor([[1e300, 0.0]], dtype=torch.float64)}, "scores reaches 1.0e"),
        ({"k": 0}, "k=0 experts per token do not fit E=2"),
        ({"k": 3}, "k=3 experts per token do not fit E=2"),
        ({"prices": torch.zeros(3)}, r"prices is torch.float32 of shape \(3,\)"),
        ({"prices": torch.tensor([0.0, NAN])}, "prices contains nan"),
        ({"token_mask": torch.ones(2)}, r"token_mask has shape \(2,\)"),
        ({"capacity": 1}, "capacity allows 0 to 2 assignments, but 4 tokens on 1 experts make 4"),
        ({"capacity": (3, 4)}, "capacity allows 6 to 8 assignments"),
        ({"capacity": (3, 2)}, "capacity asks 3 tokens of expert 0, but at most 2 can come"),
        ({"capacity": torch.tensor([1, 2, 3])}, r"capacity is torch.int64 of shape \(3,\)"),
        ({"capacity": torch.tensor([1.0, 4.0])}, "capacity is torch.float32"),
        ({"capacity": -1}, "capacity is negative for expert 0"),
    ],
)
def test_bad_input_names_the_argument(arguments, message):
    arguments = {"scores": torch.zeros(4, 2), **arguments}
    with pytest.raises(ValueError, match=message):
        balanced_assignment(arguments.pop("scores"), **arguments)


def test_compiles_without_a_graph_break():
    def gate(scores, mask):
        found = balanced_assignment(scores * 2, k=2, capacity=12, token_mask=mask)
        return found.expert_ids + 1, found.prices, found.value

    scores = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(40) % 5 > 0
    compiled = torch.compile(gate, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(scores, mask), gate(scores, mask), strict=True):
        assert torch.equal(got, expected)


def test_fake_agrees_with_the_operator():
    arguments = (torch.randn(12, 4), torch.tensor(1), torch.tensor([3, 9, 9, 9]), 1, torch.zeros(4), None, False)
    torch.library.opcheck(torch.ops.gatelab.balanced_assignment.default, arguments)


def test_under_compilation_it_answers_on_the_scores_device():
    with FakeTensorMode():
        found = balanced_assignment(torch.empty(8, 4, device="cuda"), k=2)
    assert {field.device.type for field in found} == {"cuda"}
    assert found.expert_ids.shape == (8, 2)


def test_a_wrong_answer_does_not_pass_the_certificate(solver, monkeypatch):
    if solver == "reference":
        from gatelab.kernels.reference import balanced_assignment as module
    else:
        module = cpu
    scores = torch.tensor([[5.0, 3.0], [4.0, 1.0]])

    def swapped(problem, starts):
        return np.array([[0], [1]]), starts[0]

    def unbalanced(problem, starts):
        return np.array([[0], [0]]), starts[0]

    def twice(problem, starts):
        return np.array([[0, 0], [1, 1]]), starts[0]

    for wrong, k in ((swapped, 1), (unbalanced, 1), (twice, 2)):
        monkeypatch.setattr(module, "_SOLVER", module._SOLVER._replace(solve=wrong))
        with pytest.raises(RuntimeError, match="missed the optimum"):
            balanced_assignment(scores, k=k)


def test_without_numba_numpy_answers_and_says_so_once(monkeypatch):
    scores = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    expected = balanced_assignment(scores).value
    monkeypatch.setitem(sys.modules, "numba", None)
    cpu._has_numba.cache_clear()
    try:
        with use("cpu"):
            with pytest.warns(UserWarning, match=r"pip install 'gatelab\[fast\]'"):
                assert balanced_assignment(scores).value == expected
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                balanced_assignment(scores)
    finally:
        cpu._has_numba.cache_clear()


def test_compiles_where_nothing_can_be_cached():
    from gatelab.kernels.cpu._assignment_rows import jit

    namespace = {}
    exec("def double(x): return 2 * x", namespace)  # no file, so numba finds no place for a cache
    assert jit(namespace["double"])(21) == 42


def test_runs_in_numba_where_there_is_numba(solver):
    assert cpu._has_numba()
    chosen = backend.implementation("balanced_assignment", "cpu")
    assert chosen.__module__ == f"gatelab.kernels.{solver}.balanced_assignment"
