"""Large tensors whose first use is cheap."""

import contextlib
import math
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

_CACHE_LINE = 64
_SMALL = 1 << 20  # bytes: below, torch's allocator recycles as well
_idle: list[np.ndarray] = []
_lock = threading.Lock()


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor in recycled memory, or else in huge pages where Linux grants them.

    Touching new memory costs more than filling it: 100 MB take 3 ms when recycled, 5 to 60 in huge pages, which NumPy
    asks for, and 30 or more in the pages of torch's own allocator. A tensor's memory is idle once the tensor is gone.
    Where none fits, idle buffers are given up for the new one: all together never hold more than was once in use.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes < _SMALL:
        return torch.empty(*shape, dtype=dtype)
    buffer = _recycled(num_bytes)
    if buffer is None:
        buffer = np.empty(num_bytes + _CACHE_LINE, np.uint8)
    start = -buffer.ctypes.data % _CACHE_LINE
    in_use = buffer[start : start + num_bytes]
    weakref.finalize(in_use, _idle.append, buffer).atexit = False
    return torch.from_numpy(in_use).view(dtype).view(*shape)


def entries(tensor: Tensor | None) -> Callable[[int], int]:
    """The addresses of the entries along the first axis, 0 where there is no tensor: faster to get than slices."""
    if tensor is None:
        return lambda _: 0
    size = tensor.stride(0) * tensor.itemsize
    return lambda i: tensor.data_ptr() + i * size


class Scratch:
    """Memory that one block after another uses: what malloc takes back between them costs as much as new memory."""

    def __init__(self, num_elements: int, dtype: torch.dtype) -> None:
        self._flat, self._taken = empty((num_elements,), dtype), 0

    def take(self, rows: int, columns: int) -> Tensor:
        """An uninitialised matrix, valid until `clear`."""
        start = self._taken
        self._taken = start + _aligned(rows * columns)
        return self._flat[start : start + rows * columns].view(rows, columns)

    def clear(self) -> None:
        self._taken = 0


class Scratches:
    """As many as work at once, each large enough for matrices of these columns and at most this many rows."""

    def __init__(self, rows: int, columns: Sequence[int], dtype: torch.dtype) -> None:
        self._num_elements, self._dtype = sum(_aligned(rows * c) for c in columns), dtype
        self._spare: list[Scratch] = []

    @contextlib.contextmanager
    def lend(self) -> Iterator[Scratch]:
        try:
            scratch = self._spare.pop()
        except IndexError:
            scratch = Scratch(self._num_elements, self._dtype)
        yield scratch
        scratch.clear()
        self._spare.append(scratch)


def _aligned(num_elements: int) -> int:
    return -(-num_elements // _CACHE_LINE) * _CACHE_LINE


def _recycled(num_bytes: int) -> np.ndarray | None:
    with _lock:
        for i, buffer in enumerate(_idle):
            if buffer.nbytes == num_bytes + _CACHE_LINE:
                return _idle.pop(i)
        given_up = 0
        while _idle and given_up < num_bytes:
            given_up += _idle.pop(0).nbytes
    return None
