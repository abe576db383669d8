"""Experts as two stacked linear maps of the block, sorted and split by the gate itself (JetMoE)."""

from __future__ import annotations

import torch
from torch import nn

from gatelab.layers.moe import MoE
from gatelab.routers.router import Router
from gatelab.routers.score import LinearScore
from gatelab.routers.select import TopK
from gatelab.routers.weight import SoftmaxOverChosen
from gatelab.zoo.hf.activation import activation_of, numbers_of
from gatelab.zoo.hf.experts import make_experts
from gatelab.zoo.hf.formula import Formula
from gatelab.zoo.hf.links import same, tensors
from gatelab.zoo.hf.plan import Plan
from gatelab.zoo.hf.stacks import Stack
from gatelab.zoo.hf.wrappers import SharedSum


def read_parallel_experts(block: nn.Module) -> Plan | None:
    """z = W x; softmax over the top-k logits; experts from `input_linear` and `output_linear`; a bias on the output."""
    named = tensors(block)
    if not {"input_linear.weight", "output_linear.weight", "router.layer.weight", "bias"} <= named.keys():
        return None
    E, D = named["router.layer.weight"].shape
    up, down = (Stack((f"{name}_linear.weight",), E) for name in ("input", "output"))
    activation = activation_of(block, block, gated=True)
    formula = Formula((up,), down, (), None, (False, False), gated=True, interleaved=False, activation=activation)
    with torch.device("meta"):
        router = Router(
            score=LinearScore(D, E),
            activation="none",
            select=TopK(int(numbers_of(block.get_submodule("router"))["top_k"])),
            weight=SoftmaxOverChosen(),
        )
    experts, links = make_experts(formula, named)
    links += [same("router.score.weight", "router.layer.weight"), same("shared.offset", "bias")]
    x = torch.zeros(1, 2, D)
    return Plan(MoE(router, experts, SharedSum([], named["bias"])), links, x, x)
