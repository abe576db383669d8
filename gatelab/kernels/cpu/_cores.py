"""Whole experts on each core, instead of every operation on all of them.

OpenMP makes the cores wait for each other after every operation. With operations as small as those of one expert, that
and the traffic between the cores' caches take up to a fifth of the time, and far more when other processes run.
"""

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise

import torch

_MOST_WORKERS = 8  # more would wait for Python's lock
_WORTH_A_CORE = 1 << 22  # multiply-adds, some 40 µs: below, waking another core takes longer
_IMBALANCE = 1.15  # a larger share than this times the mean, and all cores on every operation are faster
_SOFT_PAUSE = 1  # omp_pause_soft


def run(work: Callable[[range], None], expert_offsets: list[int], multiply_adds: int) -> None:
    """Call `work` on all experts, in contiguous shares of about equal rows, each with its part of the cores.

    Args:
        work: takes a range of experts; what it writes does not depend on how the experts are shared out.
        expert_offsets: E+1 row numbers; expert e has the rows from the e-th to the next.
        multiply_adds: how much there is to do.
    """
    openmp, experts = _openmp(), range(len(expert_offsets) - 1)
    if openmp is None:
        work(experts)
        return
    threads = torch.get_num_threads()
    cores = min(threads, max(1, multiply_adds // _WORTH_A_CORE))
    shares = _split(expert_offsets, min(cores, _MOST_WORKERS))
    cores_each = cores // len(shares)
    inference = torch.is_inference_mode_enabled()

    def work_elsewhere(share: range) -> None:
        torch.get_num_threads()  # torch sets this thread up at its first question, and would undo the next line
        openmp.omp_set_num_threads(cores_each)
        with torch.inference_mode(inference), torch.no_grad():
            work(share)

    futures = []
    if len(shares) > 1:
        # The threads of this thread's OpenMP would look for work for milliseconds more, on cores that now have other
        openmp.omp_pause_resource_all(_SOFT_PAUSE)
        futures = [_pool(os.getpid()).submit(work_elsewhere, share) for share in shares[1:]]
    openmp.omp_set_num_threads(cores_each)
    try:
        work(shares[0])
    finally:
        openmp.omp_set_num_threads(threads)
        wait(futures)
    for future in futures:
        future.result()


def _split(expert_offsets: list[int], workers: int) -> list[range]:
    """The experts in `workers` shares, or in half as many, and so on, until the shares balance."""
    N, experts = expert_offsets[-1], range(len(expert_offsets) - 1)
    while workers > 1:
        borders = [min(experts, key=lambda e: abs(expert_offsets[e] - w * N / workers)) for w in range(1, workers)]
        shares = [range(start, stop) for start, stop in pairwise([0, *borders, len(experts)])]
        if max(expert_offsets[s.stop] - expert_offsets[s.start] for s in shares) * workers <= _IMBALANCE * N:
            return shares
        workers //= 2
    return [experts]


@functools.cache
def _pool(pid: int) -> ThreadPoolExecutor:
    """One pool per process: threads do not survive a fork."""
    return ThreadPoolExecutor(_MOST_WORKERS - 1, thread_name_prefix="gatelab-experts")


@functools.cache
def _openmp() -> ctypes.CDLL | None:
    """The OpenMP that torch uses: its settings are the calling thread's own, those of torch.set_num_threads are not."""
    try:
        library = ctypes.CDLL(torch._C.__file__)
        return library if library.omp_set_num_threads and library.omp_pause_resource_all else None
    except (OSError, AttributeError):
        return None
