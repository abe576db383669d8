"""`group_by_expert` in Triton's interpreter, against the definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelab import kernels


def assert_agrees(ids, num_experts):
    with kernels.use("reference"):
        expected = kernels.group_by_expert(ids.long(), num_experts)
    with kernels.use("triton"):
        actual = kernels.group_by_expert(ids, num_experts)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == torch.int64
        assert torch.equal(a, b)


def test_worked_example():
    #        flattened:  0  1     2   3     4  5
    ids = torch.tensor([[1, 0], [2, -1], [0, 1]])
    with kernels.use("triton"):
        order, offsets = kernels.group_by_expert(ids, 4)
    # expert 0: entries 1, 4 · expert 1: 0, 5 · expert 2: 2 · expert 3: nothing · no expert: 3
    assert order.tolist() == [1, 4, 0, 5, 2, 3]
    assert offsets.tolist() == [0, 2, 4, 5, 5]


# 600·2 entries are ten blocks of 128, the last one not full; E = 40,000 leaves most experts empty
@pytest.mark.parametrize(("T", "J", "E"), [(0, 2, 3), (1, 1, 1), (17, 3, 3), (600, 2, 60), (128, 1, 5), (9, 4, 40_000)])
def test_sizes(T, J, E):
    ids = torch.randint(-1, E, (T, J), generator=torch.Generator().manual_seed(T))
    assert_agrees(ids, E)
    assert_agrees(ids.int(), E)
    assert_agrees(ids.t(), E)


@pytest.mark.parametrize("only", [-1, 0, 4])
def test_all_on_one_expert(only):
    assert_agrees(torch.full((150, 2), only), 5)


@settings(max_examples=20, deadline=None)
@given(st.data(), st.integers(1, 60), st.integers(1, 3), st.integers(1, 5))
def test_definition(data, T, J, E):
    flat = data.draw(st.lists(st.integers(-1, E - 1), min_size=T * J, max_size=T * J))
    with kernels.use("triton"):
        order, offsets = kernels.group_by_expert(torch.tensor(flat).view(T, J), E)
    assert order.tolist() == [i for e in [*range(E), -1] for i, expert in enumerate(flat) if expert == e]
    assert offsets.tolist() == [sum(0 <= expert < e for expert in flat) for e in range(E + 1)]


def test_compiles_without_a_graph_break():
    torch._dynamo.reset()
    with kernels.use("triton"):
        compiled = torch.compile(kernels.group_by_expert, fullgraph=True, backend="aot_eager")
        order, offsets = compiled(torch.tensor([[1, 0], [2, -1]]), 3)
    assert order.tolist() == [1, 0, 2, 3]
    assert offsets.tolist() == [0, 1, 2, 3]
