"""Equal active FLOPs: how wide an expert may be beside each gate."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch

from gatelab import kernels
from gatelab.bench.config import CompareConfig
from gatelab.bench.seeding import seeded
from gatelab.bench.workloads import BYTES
from gatelab.routers.registry import create_router, find_recipe
from gatelab.routers.router import Router


@dataclass(frozen=True)
class Match:
    """What a gate leaves for its experts.

    Attributes:
        mean_experts: mean number of experts a token reaches, as built.
        intermediate_size: I of each of them.
    """

    mean_experts: float
    intermediate_size: int


def create_gate(config: CompareConfig, name: str, device: str | None = None) -> Router:
    """The gate as the comparison uses it: with the comparison's K where its recipe can honour one."""
    recipe = find_recipe(name)
    honours = recipe.top_k == "free" and "top_k" in inspect.signature(recipe.make).parameters
    top_k = config.top_k if honours else None
    return create_router(name, config.hidden_size, config.num_experts, top_k, device=device)


def match(config: CompareConfig, name: str) -> Match:
    """The I with which gate and experts together come nearest to K experts of `config.intermediate_size` and no gate.

    Raises:
        ValueError: the gate does not fit the sizes, or alone costs more than that.
    """
    with seeded("match"):
        gate = create_gate(config, name)
    per_unit = 6 * config.hidden_size  # a SwiGLU expert has three matrices, 2 FLOPs per multiply-add
    budget = config.top_k * config.intermediate_size * per_unit
    mean_experts = _mean_experts(gate, config)
    width = round((budget - gate.flops(1)) / (mean_experts * per_unit))
    if width < 1:
        raise ValueError(
            f"router {name!r} takes {gate.flops(1):,} FLOPs per token of the {budget:,} that gate and experts share; "
            "pass a larger --hidden-size or fewer --num-experts"
        )
    return Match(mean_experts, width)


def _mean_experts(gate: Router, config: CompareConfig) -> float:
    """Zero-computation experts do not count: they cost nothing."""
    exact = gate.guarantees.experts_per_token
    if exact is not None and not gate.zero_computation:
        return float(exact)
    # It varies with the input: counted on noise, which is what an untrained gate sees. Reference kernels give every
    # machine the same width, and keep numba, 0.1 GB, out of the process that only waits for its workers.
    B, S = config.batch_size, config.sequence_length
    with seeded("mean experts"), torch.no_grad(), kernels.use("reference"):
        routing = gate(torch.randn(B, S, config.hidden_size), token_ids=torch.randint(BYTES, (B, S)))
    return float(routing.tokens_per_expert[: config.num_experts].sum()) / (B * S)
