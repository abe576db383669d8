"""Large tensors whose first use is cheap."""

import math
import threading
import weakref
from collections.abc import Sequence

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
    An idle buffer is given up whenever none of them fits, so that they never hold more than was once in use.
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


def _recycled(num_bytes: int) -> np.ndarray | None:
    with _lock:
        for i, buffer in enumerate(_idle):
            if buffer.nbytes == num_bytes + _CACHE_LINE:
                return _idle.pop(i)
        if _idle:
            _idle.pop(0)
    return None
