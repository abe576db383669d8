"""One cell from its checkpoint to its result, wherever it runs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gatelab.bench.checkpoint import REMEDY, Checkpoint
from gatelab.bench.config import CompareConfig
from gatelab.bench.errors import BadInput, CannotWrite, told
from gatelab.bench.train import Training
from gatelab.bench.workloads import Text

CHECKPOINT_SECONDS = 10.0


@dataclass(frozen=True)
class Job:
    """A cell to train.

    Attributes:
        config: the comparison.
        text: as in `load_text`.
        router, seed: which cell.
        intermediate_size: I of its experts.
        checkpoint: where it goes on, and where it may be continued.
    """

    config: CompareConfig
    text: Path | None
    router: str
    seed: int
    intermediate_size: int
    checkpoint: Checkpoint


def attempt(job: Job, text: Text, on_step: Callable[[int], None]) -> dict[str, Any]:
    """As `run_cell`, but whatever a gate or its training raises is an outcome as well: the cell's failure."""
    try:
        return run_cell(job, text, on_step)
    except (BadInput, CannotWrite):
        raise
    except (Exception, SystemExit) as error:  # the code of a gate may be the caller's, and training may diverge
        return failure(job, told(error))


def failure(job: Job, reason: str) -> dict[str, Any]:
    """An entry of `failures` in results.json."""
    return {"router": job.router, "seed": job.seed, "reason": reason}


def run_cell(job: Job, text: Text, on_step: Callable[[int], None]) -> dict[str, Any]:
    """Train and score; `on_step` hears the number of steps done.

    Raises:
        BadInput: its checkpoint is not one.
        CannotWrite: no checkpoint can be written.
    """
    with one_thread(job.config.device):
        training = Training(job.config, job.router, job.intermediate_size, job.seed, text)
        _go_on(training, job.checkpoint)
        saved = time.monotonic()
        while not training.finished:
            training.advance()
            on_step(training.step)
            if time.monotonic() - saved >= CHECKPOINT_SECONDS:
                job.checkpoint.write(training.state_dict())
                saved = time.monotonic()
        return training.result()


def _go_on(training: Training, checkpoint: Checkpoint) -> None:
    """From the checkpoint, where there is one."""
    state = checkpoint.read()
    if state is None:
        return
    try:
        training.load_state_dict(state)
        done, log = training.step, training.log
        fits = type(done) is int and 0 <= done <= training.config.steps and training.seconds >= 0
        fits = fits and len(log.load) == len(log.history["step"]) == -(-done // log.every)
        fits = fits and len(log.kept) == len(log.requested) == max(0, done - log.last_quarter)
    except Exception:  # whatever a state that is none makes torch raise
        fits = False
    if not fits:
        raise BadInput(f"{checkpoint.path} is damaged: its state does not fit the cell; {REMEDY}")


@contextlib.contextmanager
def one_thread(device: str) -> Iterator[None]:
    """On the CPU a single thread: the order of summation, and so the result, does not depend on the machine's cores."""
    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
