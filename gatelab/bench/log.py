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
        self.skipped_steps = 0

    def due(self, step: int) -> bool:
        """Whether this step (from 0) enters the history."""
        return step % self.every == 0

    def add(self, step: int, loss: Tensor, aux_loss: Tensor, tape: Tape) -> None:
        """Note a training step: its cross-entropy in nats per byte, the gates' own loss, and what they did."""
        routings = [routing for per_layer in tape.routings.values() for routing in per_layer]
        kept_LE = torch.stack([routing.tokens_per_expert for routing in routings])
        if self.due(step):
            self.load.append(kept_LE.cpu())
            self.history["step"].append(step)
            self.history["train_bits_per_byte"].append(loss.item() / math.log(2))
            self.history["aux_loss"].append(aux_loss.item())
            self.history["max_violation"].append(float(metrics.max_violation(kept_LE).mean()))
        if step >= self.last_quarter:
            self.kept.append(kept_LE)
            self.requested.append(torch.stack([routing.requested for routing in routings]))

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("every", "last_quarter")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def layers(self, num_experts: int, tokens_per_step: int) -> list[dict[str, Any]]:
        """One entry per layer, as in `results.json`; E real experts, and T tokens a step to set their use against."""
        # One by one: those of a checkpoint are on the CPU already.
        kept_NLE, requested_NLE = (torch.stack([n.cpu() for n in counts]) for counts in (self.kept, self.requested))
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
                "experts_per_token": float(total_E[:num_experts].sum()) / (tokens_per_step * len(self.kept)),
                "drop_rate": float(metrics.drop_rate(requested_NE.sum(0), total_E)),
            }
            for layer, (kept_NE, requested_NE) in enumerate(
                zip(kept_NLE.unbind(1), requested_NLE.unbind(1), strict=True)
            )
            for total_E in [metrics.sum_counts(kept_NE)]
        ]
