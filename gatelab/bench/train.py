"""One cell of a comparison: one gate, one seed, trained and scored. It can be stopped and continued anywhere."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from gatelab.bench.config import CompareConfig
from gatelab.bench.evaluate import bits_per_byte, causal_fallback, leaky_gates
from gatelab.bench.log import Log
from gatelab.bench.model import ByteTransformer
from gatelab.bench.seeding import seed_of
from gatelab.bench.workloads import Text
from gatelab.routers.router import Router
from gatelab.routers.tape import record, update_routers

VALIDATION_BYTES = 2**16
WARM_UP = 0.05  # share of the steps
FINAL_RATE = 0.1  # of the peak learning rate
CLIP = 1.0


class Training:
    """A cell under way.

    Every step draws from a seed of its own, so a checkpoint needs no generator state.

    Args:
        config: the comparison.
        router: name of the gate.
        intermediate_size: I of its experts.
        seed: of the cell.
        text: what to train on.
    """

    def __init__(self, config: CompareConfig, router: str, intermediate_size: int, seed: int, text: Text) -> None:
        self.config, self.router, self.seed, self.text = config, router, seed, text
        self.model = ByteTransformer(config, router, intermediate_size, seed).to(config.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), betas=(0.9, 0.95), fused=True)
        self.log = Log(config.steps)
        self.step = 0
        self.seconds = 0.0

    @property
    def finished(self) -> bool:
        return self.step == self.config.steps

    def advance(self) -> None:
        """One optimizer step."""
        c = self.config
        started = _now(c.device)
        ids = self.text.batch(self.seed, self.step, c.batch_size, c.sequence_length).to(c.device)
        for group in self.optimizer.param_groups:
            group["lr"] = c.learning_rate * _schedule(self.step, c.steps)
        torch.manual_seed(seed_of("step", self.seed, self.step))
        timer = _gate_timer(self.model, c.device) if self.log.due(self.step) else contextlib.nullcontext([])
        with record(self.model) as tape, timer as gate_moments:
            logits = self.model(ids[:, :-1])
        loss, aux_loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()), tape.aux_loss
        self.optimizer.zero_grad()
        (loss + aux_loss).backward()
        if nn.utils.clip_grad_norm_(self.model.parameters(), CLIP).isfinite():
            self.optimizer.step()
        else:
            self.log.skipped_steps += 1  # one bad gradient would make every weight NaN
        update_routers(tape)
        if gate_moments:
            self.log.gate_seconds.append(sum(gate_moments))
        self.log.add(self.step, loss, aux_loss, tape)
        self.step += 1
        self.seconds += _now(c.device) - started

    def result(self) -> dict[str, Any]:
        """The finished cell, as in `results.json`."""
        c = self.config
        windows = self.text.held_out(-(-VALIDATION_BYTES // c.sequence_length), c.sequence_length)
        leaky = bits_per_byte(self.model, windows, c.device) if leaky_gates(self.model) else None
        with causal_fallback(self.model, c.top_k):
            score = None if leaky_gates(self.model) else bits_per_byte(self.model, windows, c.device)
        return {
            "router": self.router,
            "seed": self.seed,
            "val_bits_per_byte": score,
            "as_trained_bits_per_byte": leaky,
            "train_seconds": self.seconds,
            "tokens_per_second": c.steps * c.batch_size * c.sequence_length / self.seconds,
            "gate_seconds_per_step": median(self.log.gate_seconds),
            "skipped_steps": self.log.skipped_steps,
            "history": self.log.history,
            "layers": self.log.layers(c.num_experts, c.batch_size * c.sequence_length),
        }

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on as if nothing had happened: tensors and plain values."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "log": self.log.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.seconds = state["step"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.log.load_state_dict(state["log"])


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to `FINAL_RATE`."""
    warm_up = min(1.0, (step + 1) / (WARM_UP * steps))
    return warm_up * (FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * step / steps)) / 2)


def _now(device: str) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextlib.contextmanager
def _gate_timer(model: nn.Module, device: str) -> Iterator[list[float]]:
    """Collects when every gate's forward begins (negative) and ends, so that the sum is their time."""
    moments: list[float] = []
    handles = []
    for gate in (m for m in model.modules() if isinstance(m, Router)):
        handles.append(gate.register_forward_pre_hook(lambda *_: moments.append(-_now(device))))
        handles.append(gate.register_forward_hook(lambda *_: moments.append(_now(device))))
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()
