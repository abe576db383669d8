"""What importing gatelab costs and brings in."""

import subprocess
import sys

HEAVY = (
    "triton",
    "numba",
    "matplotlib",
    "pandas",
    "transformers",
    "scipy.optimize",
    "torch._dynamo",
    "click",
    "rich",
    "jinja2",
)


def test_imports_nothing_heavy():
    code = f"""
import sys
import torch
had = set(sys.modules)
import gatelab
print([name for name in {HEAVY} if name in set(sys.modules) - had])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"
