"""What every launch needs."""

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

_INTERPRETED_PROGRAMS = 3  # enough that a kernel's programs share out their blocks as on a GPU
_PROGRAMS_PER_PROCESSOR = 8


def launch(kernel, programs: int, tensor: Tensor, *arguments, elements: int, **constants) -> None:
    """Run `kernel(tensor, *arguments, **constants)` in so many programs, on the device of `tensor`.

    Args:
        kernel: a Triton kernel.
        programs: 0 does nothing.
        tensor, arguments, constants: the kernel's.
        elements: numbers in the widest block of a program; it gets a warp for every 512, at most 16.
    """
    if programs == 0:
        return
    with device_of(tensor):
        warps = min(max(elements // 512, 1), 16)
        # Said here because Triton 3.9 warns that the default will change.
        kernel[(programs,)](tensor, *arguments, **constants, num_warps=warps, enable_fp_fusion=True)


def device_of(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Makes the tensor's device the current one, on which Triton launches."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def num_programs(device: torch.device) -> int:
    """How many programs fill the device, where each goes through many blocks."""
    if device.type != "cuda":
        return _INTERPRETED_PROGRAMS
    return _PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count


def rows_per_block(width: int, elements: int = 2048) -> int:
    """Rows of a block that holds about `elements` numbers, `width` of them in a row; a power of two."""
    return max(1, elements // triton.next_power_of_2(width))


def computed_in(dtype: torch.dtype) -> tl.dtype:
    """What a kernel computes in: at least float32."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def no_second_derivative(primitive: str):
    """A gradient formula, for the backward operator of `primitive`, that refuses."""

    def refuse(ctx, *gradients):
        raise NotImplementedError(
            f"{primitive} has no second derivative on the triton backend; run it under gatelab.kernels.use('reference')"
        )

    return refuse
