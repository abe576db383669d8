"""The catalogue: importing this package registers every recipe."""

from gatelab.routers.recipes import (
    attention,
    balanced,
    baselines,
    capacity,
    deepseek,
    expert_choice,
    fixed,
    language_models,
    noisy,
    scores,
    topk,
)

__all__ = [
    "attention",
    "balanced",
    "baselines",
    "capacity",
    "deepseek",
    "expert_choice",
    "fixed",
    "language_models",
    "noisy",
    "scores",
    "topk",
]
