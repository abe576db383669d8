"""Tasks on each core, instead of every operation on all of them.

OpenMP makes the cores wait for each other after every operation. With operations as small as those of one expert, that
and the traffic between the cores' caches take up to a fifth of the time, and far more when other processes run.
"""

import ctypes
import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Task = TypeVar("Task")

_MOST_WORKERS = 16  # more would wait for Python's lock
_WORTH_A_CORE = 1 << 22  # multiply-adds, some 40 µs: below, waking another core takes longer
_IMBALANCE = 1.15  # a larger task than this times a core's share, and all cores on every operation are faster
_Region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def run(work: Callable[[Task], None], tasks: Sequence[Task], sizes: Sequence[int], multiply_adds: int) -> None:
    """Call `work` on every task, each on one core or, where they would not balance, each on all cores.

    Args:
        work: what it writes does not depend on which core has the task, nor on the order of tasks.
        tasks: what to do; a core that is free takes the largest that is left.
        sizes: of each task, in any unit.
        multiply_adds: how much there is to do altogether; 0 leaves every operation to all cores.
    """
    openmp, threads = _openmp(), torch.get_num_threads()
    if openmp is None or threads == 1 or multiply_adds == 0:
        for task in tasks:
            work(task)
        return
    cores = _cores(multiply_adds)
    if cores > 1 and balance(sizes, multiply_adds):
        _share_out(openmp, work, deque(sorted(zip(sizes, tasks, strict=True), key=_size, reverse=True)), cores)
        return
    openmp.omp_set_num_threads(cores)
    try:
        for task in tasks:
            work(task)
    finally:
        openmp.omp_set_num_threads(threads)


def balance(sizes: Sequence[int], multiply_adds: int) -> bool:
    """Whether tasks of these sizes keep as many cores busy as they are worth, each one core."""
    return max(sizes, default=0) * _cores(multiply_adds) <= _IMBALANCE * sum(sizes)


def _cores(multiply_adds: int) -> int:
    return min(torch.get_num_threads(), _MOST_WORKERS, max(1, multiply_adds // _WORTH_A_CORE))


def _size(sized: tuple[int, object]) -> int:
    return sized[0]


def _share_out(openmp: ctypes.CDLL, work: Callable[[Task], None], waiting: deque[tuple[int, Task]], cores: int) -> None:
    """One parallel region of torch's own OpenMP, whose threads are awake: inside it, operations stay on their core."""
    inference = torch.is_inference_mode_enabled()
    errors: list[BaseException] = []

    def member(_: int | None) -> None:
        try:
            torch.get_num_threads()  # torch sets a thread up at its first question, and would undo the next line
            openmp.omp_set_num_threads(1)  # of this region alone; oneDNN plans for as many
            with torch.inference_mode(inference), torch.no_grad():
                while (task := _next(waiting)) is not None:
                    work(task[1])
        except BaseException as error:
            waiting.clear()
            errors.append(error)

    openmp.GOMP_parallel(_Region(member), None, cores, 0)
    if errors:
        raise errors[0]


def _next(waiting: deque[Task]) -> Task | None:
    try:
        return waiting.popleft()
    except IndexError:
        return None


@functools.cache
def _openmp() -> ctypes.CDLL | None:
    """The OpenMP that torch uses, where it has the interface of GCC's (LLVM's and Intel's on Linux have it too)."""
    try:
        library = ctypes.CDLL(torch._C.__file__)
        library.GOMP_parallel.argtypes = (_Region, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        library.GOMP_parallel.restype = None
        return library if library.omp_set_num_threads else None
    except (OSError, AttributeError):
        return None
