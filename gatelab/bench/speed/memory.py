"""Peak memory of forward + backward, our layer against others, each in a process of its own."""

import ctypes
import multiprocessing
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch

from gatelab.bench.speed.contest import CASES, Case, step
from gatelab.bench.speed.layer import enter
from gatelab.bench.speed.provenance import provenance

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MEMORY_CASES = tuple(case for case in CASES if case.backward and case.dtype == torch.float32)


def run(
    cases: Iterable[Case] = MEMORY_CASES,
    layers: Iterable[str] | None = None,
    *,
    seed: int = 0,
    report: Callable[[dict], None] = lambda row: None,
) -> list[dict]:
    """Measure by how much the process of each layer grows while it steps.

    Args:
        cases: what to measure.
        layers: names of the contestants of `gatelab speed layer`; default all of them.
        seed: of weights and tokens.
        report: called with every row as soon as it is known.

    Returns:
        One row per case and layer: the sizes, `layer`; `peak_megabytes` (of 1e6 bytes), the most that three steps add
        to what weights and tokens occupy, gradients included, None where there is no Linux to ask; `machine`,
        `versions`, `commit`.
    """
    rows = []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for case in cases:
            for name in enter(case, seed).contestants if layers is None else layers:
                peak = pool.apply(_peak_megabytes, (case, seed, name))
                row = {**case.facts, "layer": name, "peak_megabytes": peak, **provenance()}
                report(row)
                rows.append(row)
    return rows


def _peak_megabytes(case: Case, seed: int, name: str) -> float | None:
    _load_code(case, seed, name)
    contest = enter(case, seed)
    call = step(contest.contestants[name].layer, contest.x_TD, case.backward)
    if not _RESET.exists():
        return None
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # else the steps could grow into what setting up has freed, unseen
    _RESET.write_text("5")  # forgets the peak so far
    before = _kilobytes("VmRSS")
    for _ in range(3):
        call()
    return (_kilobytes("VmHWM") - before) * 1024 / 1e6


def _load_code(case: Case, seed: int, name: str) -> None:
    """A step of the same layer, very small: what is imported and compiled at the first is no part of the peak."""
    contest = enter(replace(case, T=64, D=32, I=32), seed)
    step(contest.contestants[name].layer, contest.x_TD, case.backward)()


def _kilobytes(name: str) -> int:
    return next(int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith(name))
