"""The catalogue: importing this package registers every recipe."""

from gatelab.routers.recipes import (
    attention,
    balanced,
    baselines,
    duals,
    dynamic,
    expert_choice,
    given,
    loss_free,
    topk,
    zero_computation,
)

__all__ = [
    "attention",
    "balanced",
    "baselines",
    "duals",
    "dynamic",
    "expert_choice",
    "given",
    "loss_free",
    "topk",
    "zero_computation",
]
