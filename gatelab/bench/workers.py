"""Cells side by side: on the CPU two processes of one thread each train faster than one process of two threads.

A worker reads jobs from its standard input, one JSON object a line, and answers in the same way. When the input ends,
because the parent is done or dead, it ends too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from gatelab.bench.cell import Job, attempt, failure
from gatelab.bench.checkpoint import Checkpoint
from gatelab.bench.config import CompareConfig
from gatelab.bench.errors import BadInput, CannotWrite
from gatelab.bench.workloads import Text, load_text

PROCESSES = 2  # each holds about 0.7 GB; the default comparison must fit into 2 GiB
# oneDNN keeps a compiled kernel, half a megabyte, for each of the last thousand shapes, and torch a thousand more. A
# cell has some two hundred; those of earlier cells, whose experts have another width, would be 0.1 to 0.2 GB each.
KERNELS_KEPT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "256"}
ERRORS = {error.__name__: error for error in (BadInput, CannotWrite)}
OnStep = Callable[[Job, int], None]


def run_cells(jobs: list[Job], text: Text, on_step: OnStep) -> Generator[dict[str, Any]]:
    """Yield the outcome of each job as it ends: its cell, or its failure.

    Raises:
        BadInput, CannotWrite: as `run_cell`.
    """
    device = jobs[0].config.device if jobs else "cpu"
    processes = min(PROCESSES, _cores(), len(jobs)) if device == "cpu" else 1
    if processes < 2:
        for job in jobs:
            yield attempt(job, text, lambda step, job=job: on_step(job, step))
        return
    messages: queue.SimpleQueue[tuple[_Worker, dict[str, Any] | None]] = queue.SimpleQueue()
    waiting = iter(jobs)
    workers = [_Worker(messages, job) for job in itertools.islice(waiting, processes)]
    try:
        for _ in jobs:
            worker, outcome = _next_outcome(messages, on_step)
            job = next(waiting, None)
            if job is not None and worker.ended:
                workers.append(_Worker(messages, job))
            else:
                worker.start(job)
            yield outcome
    finally:
        for worker in workers:
            worker.stop()


def _next_outcome(messages: queue.SimpleQueue, on_step: OnStep) -> tuple[_Worker, dict[str, Any]]:
    while True:
        worker, message = messages.get()
        if message is None:
            worker.ended = True
            if worker.job is not None:
                return worker, failure(worker.job, f"its process {_end(worker.process.wait())}")
        elif "error" in message:
            raise ERRORS[message["error"]](message["text"])
        elif "outcome" in message:
            return worker, message["outcome"]
        else:
            on_step(worker.job, message["step"])


def _end(status: int) -> str:
    if status < 0:
        return f"was killed by signal {-status}, perhaps for want of memory"
    return f"ended with status {status}"


class _Worker:
    def __init__(self, messages: queue.SimpleQueue, job: Job) -> None:
        command = [sys.executable, "-P", "-m", "gatelab.bench.workers"]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # `module:Gate` is found as it is here
            env={**KERNELS_KEPT, **os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,  # Ctrl-C is for the parent, which ends its workers
        )
        self._listener = threading.Thread(target=self._listen, args=(messages,), daemon=True)
        self._listener.start()
        self.ended = False
        self.start(job)

    def start(self, job: Job | None) -> None:
        self.job = job
        if job is not None:
            assert self.process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # that it has ended is heard by the listener
                print(json.dumps(dataclasses.asdict(job), default=str), file=self.process.stdin, flush=True)

    def stop(self) -> None:
        self.process.kill()
        self._listener.join()
        self.process.communicate()

    def _listen(self, messages: queue.SimpleQueue) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("\n"):  # else it was killed in the middle of it
                messages.put((self, json.loads(line)))
        messages.put((self, None))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    """A worker."""
    # What a gate prints must not end up among the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(jobs,), daemon=True).start()
    text = None
    while True:
        job = jobs.get()
        try:
            text = text or load_text(job.text, job.config.sequence_length)
            answer: dict[str, Any] = {"outcome": attempt(job, text, _Throttled(answers))}
        except tuple(ERRORS.values()) as error:
            answer = {"error": type(error).__name__, "text": str(error)}
        print(json.dumps(answer), file=answers)


def _receive(jobs: queue.SimpleQueue) -> None:
    for line in sys.stdin:
        job = json.loads(line)
        config = CompareConfig(**job["config"] | {"routers": tuple(job["config"]["routers"])})
        checkpoint = Checkpoint(Path(job["checkpoint"]["path"]), job["checkpoint"]["signature"])
        text = None if job["text"] is None else Path(job["text"])
        jobs.put(Job(**job | {"config": config, "checkpoint": checkpoint, "text": text}))
    os._exit(0)


class _Throttled:
    """Tells how far the cell is, five times a second."""

    def __init__(self, answers: Any) -> None:
        self.answers, self.told = answers, 0.0

    def __call__(self, step: int) -> None:
        if time.monotonic() - self.told > 0.2:
            self.told = time.monotonic()
            print(json.dumps({"step": step}), file=self.answers)


if __name__ == "__main__":
    main()
