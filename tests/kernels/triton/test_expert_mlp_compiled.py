"""The compiler takes `expert_mlp` in every configuration, and what it makes fits the GPUs it is made for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes a program may have, CUDA C++ Programming Guide, compute capabilities
PRODUCTS = {"_up", "_multiply_rows", "_hidden_gradient", "_outer_products"}
OTHERS = {"_list_tiles", "_combine", "_row_products", "_sum_rows"}


@pytest.mark.parametrize(("capability", "dtypes"), [(80, ["bfloat16"]), (90, ["float32", "bfloat16"])])
def test_every_launch_compiles_and_fits(capability, dtypes, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).with_name("compile_expert_mlp.py")
    command = [sys.executable, script, str(capability), *dtypes]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "Warning" not in run.stderr, run.stderr
    launches = json.loads(run.stdout)
    assert {launch["kernel"] for launch in launches} == PRODUCTS | OTHERS
    for launch in launches:
        assert launch["shared"] <= SHARED[capability], launch
        assert launch["registers"] * launch["warps"] * 32 <= 65536, launch
        # the tensor cores of Hopper, wherever there are rows enough for them
        hopper = capability == 90 and launch["dtype"] == "bfloat16" and launch["kernel"] in PRODUCTS
        assert launch["wgmma"] == (hopper and launch["rows"] >= 64), launch
        # bytes a thread spills, all outside the loop over K; the sizes were chosen for Hopper
        assert launch["stack"] <= 512 or capability < 90, launch
