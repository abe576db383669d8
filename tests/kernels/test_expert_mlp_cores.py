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


@pytest.mark.usefixtures("two_threads")
def test_balance() -> None:
    assert _cores.balance((5, 4), 1 << 40)
    assert not _cores.balance((9, 1), 1 << 40)
    assert _cores.balance((9, 1), 1)  # not worth a second core


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


@pytest.fixture
def buffers(monkeypatch: pytest.MonkeyPatch) -> _memory._Buffers:
    monkeypatch.setattr(_memory, "_buffers", buffers := _memory._Buffers())
    return buffers


def test_idle_memory_is_little_more_than_was_once_in_use(buffers: _memory._Buffers) -> None:
    small = [_memory.empty((1 << 20,), torch.uint8) for _ in range(4)]
    del small
    for more in range(4):  # one at a time, each too large for the memory of the one before
        _memory.empty((4 << 20 << more,), torch.uint8)
        assert sum(buffer.nbytes for buffer in buffers.idle) <= 1.25 * ((4 << 20 << more) + 4 * 64)


def test_steps_that_repeat_themselves_need_no_new_memory(buffers: _memory._Buffers) -> None:
    def step() -> set[int]:
        """3, 3 and 4 MB at most at once, after 2 MB."""
        addresses = {_memory.empty((2 << 20,), torch.uint8).data_ptr()}
        kept = [_memory.empty((size << 20,), torch.uint8) for size in (3, 3, 4)]
        return addresses | {tensor.data_ptr() for tensor in kept}

    step()
    second, third = step(), step()
    assert len(second) == len(buffers.idle) == 4
    assert third == second


def test_memory_that_could_not_be_had_does_not_count(buffers: _memory._Buffers) -> None:
    with pytest.raises(MemoryError):
        buffers.take(1 << 60)
    for more in range(3):
        _memory.empty((4 << 20 << more,), torch.uint8)
    assert len(buffers.idle) == 1


@pytest.mark.usefixtures("buffers")
def test_memory_that_is_a_little_too_large_is_recycled() -> None:
    _in_use = _memory.empty((64 << 20,), torch.uint8)  # so that nothing has to be given up
    larger, smaller = _memory.empty((10 << 20,), torch.uint8), _memory.empty((9 << 20,), torch.uint8)
    addresses = larger.data_ptr(), smaller.data_ptr()
    del larger, smaller
    assert _memory.empty((7 << 20,), torch.uint8).data_ptr() not in addresses  # 9 would be a quarter too many
    kept = _memory.empty(((8 << 20) + 64,), torch.uint8), _memory.empty(((8 << 20) + 64,), torch.uint8)
    assert tuple(tensor.data_ptr() for tensor in kept) == addresses[::-1]  # the smaller one first


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
