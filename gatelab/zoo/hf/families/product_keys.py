"""Single-neuron experts found by product keys (Doge)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelab.layers.experts import Experts
from gatelab.layers.moe import MoE
from gatelab.routers.context import Context
from gatelab.routers.guarantees import Guarantees
from gatelab.routers.router import Router
from gatelab.routers.score import LinearScore
from gatelab.routers.select import TopK
from gatelab.routers.weight import SoftmaxOverChosen
from gatelab.zoo.hf.activation import activation_of, numbers_of
from gatelab.zoo.hf.errors import UnsupportedBlock
from gatelab.zoo.hf.links import module_links, same
from gatelab.zoo.hf.plan import Plan


class MixedKeyScore(LinearScore):
    """z_t(i·n + j) = a_t(i) + b_t(j) over E = n² experts, as transformers' Doge has it.

    a and b should be the halves of W x_t. The released code splits W x (T, 2n) into (2, T, n) by memory instead, so
    that a_t and b_t come from tokens near t/2 and (T + t)/2: not causal, and dependent on T; one token by itself is
    right.

    Source: PEER, arXiv 2407.04153, §2.1, for product keys; transformers' DogeCDMoE for the split.
    """

    def __init__(self, hidden_size: int, num_keys: int) -> None:
        super().__init__(hidden_size, 2 * num_keys)
        self.num_keys, self.num_experts = num_keys, num_keys**2

    def keys(self, hidden_TD: Tensor) -> Tensor:
        """(2, T, n): a and b."""
        return F.linear(hidden_TD, self.weight.to(hidden_TD.dtype)).reshape(2, -1, self.num_keys)

    def forward(self, ctx: Context) -> Tensor:
        a_TN, b_TN = self.keys(ctx.hidden_TD)
        return (a_TN[:, :, None] + b_TN[:, None, :]).flatten(1)

    def guarantees(self, training: bool) -> Guarantees:
        return Guarantees(causal=False, token_wise=False)

    def flops(self, T: int) -> int:
        """2·T·D·2n."""
        return 4 * T * self.hidden_size * self.num_keys


class GatedMLP(nn.Module):
    """down(act(gate(x)) · up(x)), of three linear maps."""

    def __init__(self, gate_proj: nn.Module, up_proj: nn.Module, down_proj: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj, self.act = gate_proj, up_proj, down_proj, act

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


def read_product_keys(block: nn.Module) -> Plan | None:
    """A dense network plus k of E experts up_e · act(down_e · x), by product keys."""
    named = dict(block.named_parameters())
    if not {"router_gate.weight", "down_embed.weight", "up_embed.weight"} <= named.keys():
        return None
    E, D = named["down_embed.weight"].shape
    n = named["router_gate.weight"].shape[0] // 2
    if n * n != E:
        raise UnsupportedBlock(f"its {n} × {n} keys do not reach all of its {E} experts")
    parts = ("gate_proj", "up_proj", "down_proj")
    shared = GatedMLP(*(copy.deepcopy(block.get_submodule(name)) for name in (*parts, "act_fn")))
    activation = activation_of(block, block, gated=False)
    with torch.device("meta"):
        router = Router(
            score=MixedKeyScore(D, n),
            activation="none",
            select=TopK(int(numbers_of(block)["top_k"])),
            weight=SoftmaxOverChosen(),
        )
        experts = Experts(E, D, 1, activation=activation, gated=False)
    links = [
        same("router.score.weight", "router_gate.weight"),
        same("experts.gate_up_proj", "down_embed.weight", (E, 1, D)),
        same("experts.down_proj", "up_embed.weight", (E, D, 1)),
        *(link for name in parts for link in module_links(f"shared.{name}", name, getattr(shared, name))),
    ]
    x = torch.zeros(1, 2, D)
    return Plan(MoE(router, experts, shared), links, x, (x, x))
