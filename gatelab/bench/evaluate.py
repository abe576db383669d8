"""Bits per byte on held-out text, by a gate that could have generated it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelab.bench.seeding import seeded
from gatelab.routers.router import Router
from gatelab.routers.select import TopK

EVALUATION_BATCH = 32


@torch.no_grad()
def bits_per_byte(model: nn.Module, windows: Tensor, device: str | torch.device) -> float:
    """Mean cross-entropy of the next byte in bits.

    Args:
        model: (B, S) bytes -> (B, S, 256) logits; put into evaluation mode for the call.
        windows: (n, S + 1) int64.
        device: of the model.
    """
    was_training = model.training
    model.eval()
    total = 0.0
    with seeded("evaluation"):  # `random` draws in evaluation too
        for ids in windows.to(device).split(EVALUATION_BATCH):
            logits = model(ids[:, :-1])
            total += F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum").item()
    model.train(was_training)
    return total / (windows.shape[0] * (windows.shape[1] - 1)) / math.log(2)


def leaky_gates(model: nn.Module) -> list[Router]:
    """The gates whose routing in evaluation depends on later positions."""
    was_training = model.training
    model.eval()
    found = [m for m in model.modules() if isinstance(m, Router) and not m.guarantees.causal]
    model.train(was_training)
    return found


@contextlib.contextmanager
def causal_fallback(model: nn.Module, top_k: int) -> Iterator[None]:
    """Let leaky gates select token by token the experts with the best of the scores they learned.

    Args:
        model: whose gates to change inside the block.
        top_k: how many, for a gate that has no fixed number of its own.
    """
    gates = leaky_gates(model)
    selects = [gate.select for gate in gates]
    for gate in gates:
        gate.select = TopK(fallback_k(gate, top_k))
    try:
        yield
    finally:
        for gate, select in zip(gates, selects, strict=True):
            del gate.select  # torch does not let a plain function take the place of a module
            gate.select = select


def fallback_k(gate: Router, top_k: int) -> int:
    """Experts per token of the causal fallback."""
    return gate.guarantees.experts_per_token or top_k
