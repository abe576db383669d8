"""`group_by_expert`: a worked example, its definition on random ids, both backends."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gatelab import kernels

BACKENDS = ("reference", "cpu")


@pytest.mark.parametrize("backend", BACKENDS)
def test_worked_example(backend: str) -> None:
    #        flattened:  0  1     2   3     4  5
    ids = torch.tensor([[1, 0], [2, -1], [0, 1]])
    with kernels.use(backend):
        order, offsets = kernels.group_by_expert(ids, 4)
    # expert 0: entries 1, 4 · expert 1: 0, 5 · expert 2: 2 · expert 3: nothing · no expert: 3
    assert order.tolist() == [1, 4, 0, 5, 2, 3]
    assert offsets.tolist() == [0, 2, 4, 5, 5]


@given(st.data(), st.integers(0, 9), st.integers(1, 3), st.integers(1, 5))
def test_definition(data: st.DataObject, T: int, J: int, E: int) -> None:
    flat = data.draw(st.lists(st.integers(-1, E - 1), min_size=T * J, max_size=T * J))
    ids = torch.tensor(flat, dtype=torch.int64).view(T, J)
    expected = [i for e in [*range(E), -1] for i, expert in enumerate(flat) if expert == e]
    for backend in BACKENDS:
        with kernels.use(backend):
            order, offsets = kernels.group_by_expert(ids, E)
        assert order.dtype == offsets.dtype == torch.int64
        assert order.tolist() == expected
        assert offsets.tolist() == [sum(0 <= expert < e for expert in flat) for e in range(E + 1)]


def test_more_experts_than_fit_16_bits() -> None:
    E = 40_000
    ids = torch.tensor([[39_999, 32_768], [0, 32_767]])
    for backend in BACKENDS:
        with kernels.use(backend):
            order, offsets = kernels.group_by_expert(ids, E)
        assert order.tolist() == [2, 3, 1, 0]
        assert offsets[[1, 32_767, 32_768, 32_769, 39_999, 40_000]].tolist() == [1, 1, 2, 3, 3, 4]


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_a_graph_break(backend: str) -> None:
    ids = torch.tensor([[1, 0], [2, -1]])
    with kernels.use(backend):
        order, offsets = torch.compile(kernels.group_by_expert, fullgraph=True, backend="aot_eager")(ids, 3)
    assert order.tolist() == [1, 0, 2, 3]
    assert offsets.tolist() == [0, 1, 2, 3]


def test_not_a_matrix_of_integers() -> None:
    with pytest.raises(ValueError, match="ids_TJ"):
        kernels.group_by_expert(torch.zeros(3, dtype=torch.int64), 2)
    with pytest.raises(ValueError, match="ids_TJ"):
        kernels.group_by_expert(torch.zeros(3, 2), 2)


@pytest.mark.parametrize("T", [20, 3000])  # in NumPy, in numba
def test_ids_of_no_expert_are_written_nowhere(T):
    ids = torch.arange(2 * T).view(T, 2) % 4
    ids[5, 0], ids[7, 1] = 10**6, -(10**6)
    with kernels.use("cpu"):
        order, offsets = kernels.group_by_expert(ids, 4)
    flat = ids.flatten()
    assert offsets.diff().tolist() == [int((flat == e).sum()) for e in range(4)]
    assert set(order[offsets[-1] :].tolist()) == {10, 15}  # 5·2 + 0 and 7·2 + 1
