"""Compiles every launch of the kernels for a GPU that is not there, and prints what ptxas made of each, as JSON.

    python compile_without_gpu.py 90 float32 bfloat16      # compute capability 9.0: H100 and H200

Public functions are called on tensors of the CPU at published sizes; where a kernel would be launched, it is compiled.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

import gatelab.kernels.triton
from gatelab import kernels

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
GROUPED = {"num_groups": 8, "keep_groups": 4, "groups_by": "two-best", "renormalize": True}


class Absent:
    """A driver of a GPU that is not there."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compiled_launches(capability: int, dtypes: list[torch.dtype]) -> list[dict]:
    """Every different launch of `call_everything`."""
    driver.set_active(Absent(capability))
    gatelab.kernels.triton.check_device = lambda device_type: None
    launches, seen, run = [], set(), JITFunction.run

    def compile_only(kernel, *args, grid, warmup, **options):
        types = tuple(a.dtype if isinstance(a, torch.Tensor) else a for a in args)
        key = (kernel.fn, types, tuple(sorted(options.items(), key=str)))
        if key not in seen:
            seen.add(key)
            binary = run(kernel, *args, grid=grid, warmup=True, **options)
            floats = sorted({str(t) for t in types if isinstance(t, torch.dtype) and t.is_floating_point})
            launches.append(
                {"kernel": f"{kernel.fn.__module__}.{kernel.fn.__name__}", "floats": floats, **usage(binary)}
            )

    JITFunction.run = compile_only
    for dtype in dtypes:
        call_everything(dtype)
    return launches


def usage(binary) -> dict[str, int]:
    """Registers of a thread, bytes of local memory, where they spill; shared bytes and warps of a program."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        found = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.findall(rf"{name}:(\d+)", found)[-1]) for name in ("REG", "STACK", "LOCAL"))
    warps, shared = binary.metadata.num_warps, binary.metadata.shared
    return {"registers": registers, "stack": stack, "local": local, "warps": warps, "shared": shared}


def call_everything(dtype: torch.dtype) -> None:
    """Every kernel, forward and backward; also with T = 1, which Triton compiles in as a constant."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=dtype, requires_grad=True)

    with kernels.use("triton"):
        for T, E, K, options in (
            (64, 128, 8, {"renormalize": True}),
            (64, 256, 8, {"activation": "sigmoid", "bias": torch.zeros(256), **GROUPED}),
            (1, 60, 4, {"activation": "sqrt-softplus", "token_mask": torch.ones(1)}),
        ):
            chosen = kernels.topk_gate(normal(T, E), K, **options)
            (chosen.topk_weights.sum() + chosen.logsumexp.sum()).backward()
        for E in (32, 512):
            kernels.attention_gate(normal(64, E), normal(64, E), normal(64, E)).sum().backward()
        kernels.group_by_expert(torch.zeros(64, 8, dtype=torch.int64), 128)
        kernels.group_by_expert(torch.zeros(1, 1, dtype=torch.int64), 1)
        kernels.sinkhorn(normal(64, 128), token_mask=torch.ones(64))
        kernels.sinkhorn(normal(1, 60))
        D, H = 2048, 1024
        parameters = normal(2, H, D), normal(H), normal(2, D, H), normal(D), normal(D)
        step = {"token_mask": torch.ones(1, 1, dtype=torch.bool), "history": (normal(1, D), normal(1, H))}
        for S, options in ((4, {}), (1, step)):
            y, _ = kernels.local_filter(normal(1, S, D), *parameters, **options)
            y.sum().backward()


if __name__ == "__main__":
    print(json.dumps(compiled_launches(int(sys.argv[1]), [getattr(torch, name) for name in sys.argv[2:]])))
