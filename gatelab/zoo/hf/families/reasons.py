"""Blocks that are understood, and are not to be had as one MoE layer."""

from __future__ import annotations

import inspect

from torch import nn

from gatelab.zoo.hf.errors import NotOneLayer


def refuse(block: nn.Module) -> None:
    """Raise with the reason, for a block that has one.

    Raises:
        NotOneLayer: it has.
    """
    children = dict(block.named_children())
    experts = children.get("experts")
    arguments = inspect.signature(block.forward).parameters
    gated = "router" in children or "gate" in children
    if _maps(block) and gated:
        raise NotOneLayer("its experts are query and output projections of attention, with the attention between")
    if experts is not None and _maps(experts):
        raise NotOneLayer("it is an attention whose projections are experts, not a feed-forward layer")
    if {"text_moe", "vision_moe"} <= children.keys():
        raise NotOneLayer("it holds two MoE layers, for text and for vision tokens; convert .text_moe and .vision_moe")
    if experts is not None and not gated and "indices" in arguments:
        raise NotOneLayer("it has no gate: the caller names the expert, by the data set an image comes from")


def _maps(module: nn.Module) -> bool:
    """Attention in two steps, `map` before it and `reduce` after it."""
    return hasattr(module, "map") and hasattr(module, "reduce")
