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
_WASTE = 1.25  # of a buffer for what it is needed for, and of all buffers for what was needed at once


class _Buffers:
    """Bytes that are in use by a tensor or idle, all together little more than were ever in use at once.

    A little, because the same steps again and again use this and that at times of their own: if something had to be
    given up each time, it would be what is needed next.
    """

    def __init__(self) -> None:
        self.idle: list[np.ndarray] = []
        self._lock = threading.Lock()
        self._held = self._most_in_use = 0

    def take(self, num_bytes: int) -> np.ndarray:
        """An idle buffer, the smallest that is no waste, or a new one, for which others may be given up."""
        with self._lock:
            fitting = [(b.nbytes, i) for i, b in enumerate(self.idle) if num_bytes <= b.nbytes <= _WASTE * num_bytes]
            if fitting:
                return self.idle.pop(min(fitting)[1])
        buffer = np.empty(num_bytes, np.uint8)
        with self._lock:
            self._held += num_bytes
            self._most_in_use = max(self._most_in_use, self._held - sum(buffer.nbytes for buffer in self.idle))
            while self._held > _WASTE * self._most_in_use:
                self._held -= self.idle.pop(0).nbytes
        return buffer


_buffers = _Buffers()


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor in recycled memory, or else in huge pages where Linux grants them.

    Touching new memory costs more than filling it: 100 MB take 3 ms when recycled, 5 to 60 in huge pages, which NumPy
    asks for, and 30 or more in the pages of torch's own allocator. A tensor's memory is idle once the tensor is gone.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes < _SMALL:
        return torch.empty(*shape, dtype=dtype, device="cpu")
    buffer = _buffers.take(num_bytes + _CACHE_LINE)
    start = -buffer.ctypes.data % _CACHE_LINE
    in_use = buffer[start : start + num_bytes]
    weakref.finalize(in_use, _buffers.idle.append, buffer).atexit = False
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
