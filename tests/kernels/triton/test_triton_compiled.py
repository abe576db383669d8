"""The compiler, stricter than the interpreter, takes every kernel, and what it makes fits the GPUs it is made for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes a program may have, CUDA C++ Programming Guide, compute capabilities
KERNELS = {
    "_topk_gate_kernels.forward",
    "_topk_gate_kernels.backward",
    "attention_gate._forward_kernel",
    "attention_gate._backward_kernel",
    "group_by_expert._count",
    "group_by_expert._place",
    "sinkhorn._scale_rows",
    "sinkhorn._scale_columns",
    "sinkhorn._plan",
    "_filter_taps._forward_kernel",
    "_filter_taps._backward_kernel",
    "_filter_norm._forward_kernel",
    "_filter_norm._backward_kernel",
}
WHATEVER_THE_INPUT = ("group_by_expert.", "sinkhorn.")  # integers; at least float32 before any kernel


@pytest.mark.parametrize(("capability", "dtypes"), [(80, ["bfloat16"]), (90, ["float32", "bfloat16"])])
def test_every_kernel_compiles_and_fits(capability, dtypes, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).with_name("compile_without_gpu.py")
    command = [sys.executable, script, str(capability), *dtypes]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "Warning" not in run.stderr, run.stderr
    launches = json.loads(run.stdout)
    for launch in launches:
        launch["kernel"] = launch["kernel"].removeprefix("gatelab.kernels.triton.")
        # ptxas shows spills as stack; a pair of registers is no loss.
        assert launch["local"] == 0, launch
        assert launch["stack"] <= 8, launch
        assert launch["shared"] <= SHARED[capability], launch
        assert launch["registers"] * launch["warps"] * 32 <= 65536, launch
    assert {launch["kernel"] for launch in launches} == KERNELS
    for kernel in KERNELS:
        if not kernel.startswith(WHATEVER_THE_INPUT):
            floats = {dtype for launch in launches if launch["kernel"] == kernel for dtype in launch["floats"]}
            assert floats >= {f"torch.{dtype}" for dtype in dtypes}, kernel
