"""The primitives as Triton kernels: for CUDA tensors, or for tensors on the CPU in Triton's interpreter."""

try:
    from triton import knobs
except ImportError as error:
    raise ImportError("the triton backend needs Triton (Linux only): pip install 'gatelab[triton]'") from error

# Triton decides once, when a kernel is defined, whether it will be interpreted or compiled.
INTERPRETED: bool = knobs.runtime.interpret


def check_device(device_type: str) -> None:
    """Raise RuntimeError unless kernels run on tensors of that device in this process."""
    if device_type == "cpu" and not INTERPRETED:
        raise RuntimeError(
            "the triton backend needs CUDA tensors; for tensors on the CPU start Python with TRITON_INTERPRET=1 "
            "(Triton's interpreter, for tests) or choose the backend 'cpu'"
        )
