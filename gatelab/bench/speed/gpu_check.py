"""What `make gpu-check` runs: the tests that need a GPU, then `gatelab speed --device cuda`, into one directory.

    PYTHONPATH=. python gatelab/bench/speed/gpu_check.py [DIR]       # default runs/gpu: speed.json and speed.txt

A file to run, not a module: importing gatelab would need torch before anyone can say that it is missing.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import IO

NEEDED = (
    "torch",
    "numpy",
    "scipy",
    "einops",
    "triton",
    "pytest",
    "hypothesis",
    "click",
    "rich",
    "jinja2",
    "matplotlib",
)
ROOT = Path(__file__).parents[3]


def main(arguments: list[str]) -> int:
    """0 if all is well; 2 where this cannot run; else the status of what failed."""
    if why := obstacle():
        print(f"gpu-check: {why}", file=sys.stderr)
        return 2
    out = Path(arguments[0] if arguments else "runs/gpu").resolve()
    out.mkdir(parents=True, exist_ok=True)
    tests = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    # warnings of versions that nobody has seen here are no failures
    options = ["-m", "gpu", "-o", "filterwarnings=default", "-p", "no:cacheprovider"]
    status = _python("-m", "pytest", *options, *tests)
    if status:
        print("gpu-check: the tests fail, so nothing is timed", file=sys.stderr)
        return status
    with open(out / "speed.json", "w") as file:
        status = _python("-m", "gatelab", "speed", "--device", "cuda", "--json", stdout=file)
    from gatelab.bench.commands.speed import tables  # click and rich: only now known to be there

    measured = (out / "speed.json").read_text()
    if measured:  # what came before a failure too
        text = tables(json.loads(measured))
        (out / "speed.txt").write_text(text + "\n")
        print(text)
    return status


def _python(*arguments: str, stdout: IO[str] | None = None) -> int:
    """Run this Python in the checkout, with compiled kernels: the tests' conftest would choose the interpreter."""
    path = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(path)}
    environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS asks for it where torch is to be deterministic
    return subprocess.call([sys.executable, *arguments], cwd=ROOT, env=environment, stdout=stdout)


def obstacle() -> str | None:
    """Why this cannot run here, in one line."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed for {sys.executable}; pip install {' '.join(missing)}"
    import torch

    if not torch.cuda.is_available():
        return "torch sees no CUDA device; run it on a machine with an NVIDIA GPU and a CUDA build of torch"
    if not (ROOT / "tests").is_dir():
        return "run it from a source checkout, which has the tests"
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
