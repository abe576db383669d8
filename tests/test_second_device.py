"""Everything runs on a device that is not the CPU, mixes it with nothing, and gives the numbers of the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import gatelab

PROGRAM = Path(__file__).with_name("second_device.py")


@pytest.mark.parametrize(
    ("what", "most"),
    [
        ("gates", 1e-5),
        ("training", 1e-2),  # bits per byte: scores are rounded otherwise there, and a near tie sends a token elsewhere
        ("assignment", 0.0),
    ],
)
def test_the_numbers_of_the_cpu(what, most):
    ended = subprocess.run([sys.executable, PROGRAM, what], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    far = json.loads(ended.stdout)
    assert what != "gates" or list(far) == gatelab.list_routers()
    assert {name: distance for name, distance in far.items() if not distance <= most} == {}
