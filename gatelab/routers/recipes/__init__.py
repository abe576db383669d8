"""The catalogue: importing this package registers every recipe."""

from gatelab.routers.recipes import (
    attention,
    balanced,
    baselines,
    capacity,
    deepseek,
    duals,
    dynamic,
    expert_choice,
    fixed,
    given,
    language_models,
    loss_free,
    noisy,
    scores,
    topk,
    zero_computation,
)

__all__ = [
    "attention",
    "balanced",
    "baselines",
    "capacity",
    "deepseek",
    "duals",
    "dynamic",
    "expert_choice",
    "fixed",
    "given",
    "language_models",
    "loss_free",
    "noisy",
    "scores",
    "topk",
    "zero_computation",
]
