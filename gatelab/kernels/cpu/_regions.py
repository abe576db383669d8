"""Parallel regions of torch's own OpenMP whose members are machine code, made by numba (extra `fast`).

No Python runs in them: nobody waits for its lock, and little has to come from memory where a call takes microseconds.
"""

import ctypes
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from numba import cfunc, int64, types, void

from gatelab.kernels.cpu._cores import _openmp
from gatelab.kernels.cpu._emit import LONG, inline

_Member = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def region(function: Callable[[int], None], *sources: str) -> Callable[..., None]:
    """A call of `function` on every core, compiled now or found on disk under the version of the `sources` beside this.

    The function takes the address of int64 numbers: first the one that `claim` counts up, then those of the call. It
    does, in machine code and without allocating, whatever pieces it claims, until none is left.

    Returns:
        Takes how many cores, and the numbers.
    """
    code = b"".join(Path(__file__).with_name(f"{name}.py").read_bytes() for name in ("_regions", *sources))
    function.__qualname__ = f"{function.__name__}_{hashlib.sha256(code).hexdigest()[:8]}"
    options = {"nopython": True, "error_model": "numpy"}
    try:
        compiled = cfunc(void(int64), cache=True, **options)(function)
    except RuntimeError:  # neither the package's directory nor the user's can be written
        compiled = cfunc(void(int64), **options)(function)
    member = _Member(compiled.address)  # type: ignore[arg-type]  # the stubs know no addresses

    def call(cores: int, *numbers: int) -> None:
        data = (ctypes.c_int64 * (1 + len(numbers)))(0, *numbers)
        openmp, threads = _openmp(), min(cores, torch.get_num_threads())
        if openmp is None or threads <= 1:
            member(data)
        else:
            openmp.GOMP_parallel(member, data, threads, 0)

    call.compiled = compiled  # type: ignore[attr-defined]  # or its code would go
    return call


@inline
def claim(_: Any, address: Any) -> Any:
    """The number of the next piece."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        return b.atomic_rmw("add", b.inttoptr(arguments[0], LONG.as_pointer()), LONG(1), "monotonic")

    return int64(address), emit


def _array(kind: Any) -> Any:
    @inline
    def pointer(_: Any, address: Any) -> Any:
        def emit(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            return b.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(address), emit

    return pointer


longs_at, floats_at, shorts_at = map(_array, (int64, types.float32, types.uint16))
