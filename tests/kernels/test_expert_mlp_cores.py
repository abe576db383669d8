"""What carries the cpu backend of `expert_mlp`: tasks on cores, and memory that is used again."""

import threading

import pytest
import torch

from gatelab.kernels.cpu import _cores, _memory


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("sizes", [(9, 1), (1, 1, 1, 1)])  # one task has it all: no two shares balance
def test_every_task_is_done_once(sizes: tuple[int, ...]) -> None:
    done: list[int] = []
    _cores.run(done.append, range(len(sizes)), sizes, 1 << 40)
    assert sorted(done) == list(range(len(sizes)))
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_a_core_works_alone_and_without_gradients() -> None:
    seen: list[tuple[int, bool, int]] = []
    both = threading.Barrier(2, timeout=30)

    def work(task: int) -> None:
        both.wait()  # only two cores at once come past this
        seen.append((torch.get_num_threads(), torch.is_grad_enabled(), threading.get_ident()))

    _cores.run(work, range(2), (1, 1), 1 << 40)
    assert [(threads, grad) for threads, grad, _ in seen] == [(1, False)] * 2
    assert len({ident for *_, ident in seen}) == 2


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("sizes", [(1, 1), (9, 1)])
def test_an_error_on_any_core_is_raised(sizes: tuple[int, ...]) -> None:
    def work(task: int) -> None:
        if task == 1:
            raise IndexError("task 1")

    with pytest.raises(IndexError, match="task 1"):
        _cores.run(work, range(2), sizes, 1 << 40)
    assert torch.get_num_threads() == 2


def test_without_this_openmp_every_operation_has_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cores, "_openmp", lambda: None)
    done: list[int] = []
    _cores.run(done.append, range(3), (1, 1, 1), 1 << 40)
    assert done == [0, 1, 2]


def test_memory_is_recycled_once_no_tensor_uses_it() -> None:
    shape = (1 << 19,)
    first = _memory.empty(shape, torch.float32)
    address, view = first.data_ptr(), first[3:5]
    assert address % 64 == 0
    del first
    second = _memory.empty(shape, torch.float32)
    assert second.data_ptr() != address  # a view still uses it
    del view
    assert _memory.empty(shape, torch.float32).data_ptr() == address


def test_idle_memory_is_no_more_than_was_once_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "_idle", [])
    small = [_memory.empty((1 << 20,), torch.uint8) for _ in range(4)]
    del small
    for more in range(8):  # one at a time, no two of the same size
        _memory.empty(((4 << 20) + more,), torch.uint8)
        assert sum(buffer.nbytes for buffer in _memory._idle) < (4 << 20) + 4096


def test_a_block_uses_the_memory_of_the_one_before() -> None:
    scratches = _memory.Scratches(8, (3, 5), torch.float32)
    with scratches.lend() as scratch:
        first, second = scratch.take(8, 3), scratch.take(7, 5)
        with scratches.lend() as other:  # another core at the same time
            assert other.take(8, 3).data_ptr() != first.data_ptr()
    first.fill_(1)
    second.fill_(2)
    assert (first == 1).all()
    with scratches.lend() as scratch:
        assert scratch.take(8, 3).data_ptr() == first.data_ptr()
