"""The machine that a run was made on, as its results name it."""

import os
import platform
from pathlib import Path
from typing import Any

import torch


def machine(device: str) -> dict[str, Any]:
    """`machine` of our JSON files; `device` with the name of a GPU."""
    name = f" ({torch.cuda.get_device_name(device)})" if device != "cpu" else ""
    return {
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device + name,
    }


def processor() -> str:
    """Its model name where the system tells, else its architecture."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
