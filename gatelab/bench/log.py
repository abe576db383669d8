"""What is kept of one training: a history, the load of every expert over time, and the balance it ended with."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gatelab.bench import metrics
from gatelab.routers.tape import Tape

RECORDS = 100  # at most so many points in a history


class Log:
    """Filled step by step; `state_dict` is what a checkpoint holds.

    Args:
        steps: how many there will be.
    """

    def __init__(self, steps: int) -> None:
        self.every = math.ceil(steps / RECORDS)
        self.last_quarter = steps - math.ceil(steps / 4)
        self.history: dict[str, list] = {"step": [], "train_bits_per_byte": [], "aux_loss": [], "max_violation": []}
        self.load: list[Tensor] = []
        self.kept: list[Tensor] = []
        self.requested: list[Tensor] = []
        self.gate_seconds: list[float] = []

    def due(self, step: int) -> bool:
        """Whether this step (from 0) enters the history."""
        return step % self.every == 0

    def add(self, step: int, loss: Tensor, tape: Tape) -> None:
        """Note a training step: its cross-entropy in nats per byte, and what its gates did."""
        routings = [routing for per_layer in tape.routings.values() for routing in per_layer]
        kept_LE = torch.stack([routing.tokens_per_expert for routing in routings])
        if self.due(step):
            self.load.append(kept_LE.cpu())
            self.history["step"].append(step)
            self.history["train_bits_per_byte"].append(loss.item() / math.log(2))
            self.history["aux_loss"].append(float(tape.aux_loss.detach()))
            self.history["max_violation"].append(float(metrics.max_violation(kept_LE).mean()))
        if step >= self.last_quarter:
            self.kept.append(kept_LE)
            self.requested.append(torch.stack([routing.requested for routing in routings]))

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("every", "last_quarter")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def layers(self) -> list[dict[str, Any]]:
        """One entry per layer, as in `results.json`."""
        kept_NLE, requested_NLE = torch.stack(self.kept).cpu(), torch.stack(self.requested).cpu()
        load_RLE = torch.stack(self.load)
        return [
            {
                "name": f"layer {layer}",
                "load_steps": self.history["step"],
                "load": load_RLE[:, layer].tolist(),
                "max_violation": float(metrics.max_violation(kept_NE).mean()),
                "max_violation_global": float(metrics.max_violation(total_E)),
                "coefficient_of_variation": float(metrics.coefficient_of_variation(total_E)),
                "load_entropy": float(metrics.load_entropy(total_E)),
                "dead_experts": int(metrics.dead_experts(total_E)),
                "drop_rate": float(metrics.drop_rate(requested_NE.sum(0), total_E)),
            }
            for layer, (kept_NE, requested_NE) in enumerate(
                zip(kept_NLE.unbind(1), requested_NLE.unbind(1), strict=True)
            )
            for total_E in [metrics.sum_counts(kept_NE)]
        ]
