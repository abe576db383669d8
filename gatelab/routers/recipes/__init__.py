"""The catalogue: importing this package registers every recipe."""

from gatelab.routers.recipes import attention, balanced, baselines, expert_choice, topk

__all__ = ["attention", "balanced", "baselines", "expert_choice", "topk"]
