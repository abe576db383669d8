"""The small byte-level transformer that every gate is trained in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelab.bench.config import CompareConfig
from gatelab.bench.matching import create_gate
from gatelab.bench.seeding import seeded
from gatelab.bench.workloads import BYTES
from gatelab.layers.attention import CausalAttention, FilteredAttention
from gatelab.layers.experts import Experts
from gatelab.layers.moe import MoE
from gatelab.routers.router import Router
from gatelab.routers.routing import Routing

ATTENTION: dict[str, type[CausalAttention]] = {"plain": CausalAttention, "lfa": FilteredAttention}


class Block(nn.Module):
    """x + attention(norm(x)), then x + MoE(norm(x))."""

    def __init__(self, attention: CausalAttention, moe: MoE, hidden_size: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.RMSNorm(hidden_size), attention
        self.moe_norm, self.moe = nn.RMSNorm(hidden_size), moe

    def forward(self, x_BSD: Tensor, token_ids: Tensor, previous: Routing | None) -> tuple[Tensor, Routing]:
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD))
        y_BSD, routing = self.moe(self.moe_norm(x_BSD), token_ids=token_ids, previous=previous)
        return x_BSD + y_BSD, routing


class ByteTransformer(nn.Module):
    """Bytes in, logits of the next byte out.

    Every parameter that two gates share has its own seed, so that it starts out the same whatever the gate. Experts are
    slices of one larger seeded tensor: where those of two gates overlap, they are identical.

    Args:
        config: sizes.
        router: name of the gate.
        intermediate_size: I of its experts.
        seed: of everything.
    """

    def __init__(self, config: CompareConfig, router: str, intermediate_size: int, seed: int) -> None:
        super().__init__()
        D, E = config.hidden_size, config.num_experts
        with seeded("embedding", seed):
            self.embedding = nn.Embedding(BYTES, D)
            nn.init.normal_(self.embedding.weight, std=D**-0.5)
        layers = []
        for layer in range(config.num_layers):
            with seeded("attention", seed, layer):
                attention = ATTENTION[config.attention](D, config.num_heads)
            with seeded("router", seed, layer):
                gate = create_gate(config, router)
            with seeded("experts", seed, layer):
                experts = sliced_experts(gate, E, D, intermediate_size, config.top_k * config.intermediate_size)
            layers.append(Block(attention, MoE(gate, experts), D))
        # A ModuleList, typed by what it holds.
        self.layers = cast("Sequence[Block]", nn.ModuleList(layers))
        self.norm = nn.RMSNorm(D)

    def forward(self, ids_BS: Tensor) -> Tensor:
        """(B, S) bytes to (B, S, 256) logits."""
        x_BSD, routing = self.embedding(ids_BS), None
        for block in self.layers:
            x_BSD, routing = block(x_BSD, ids_BS, routing)
        return F.linear(self.norm(x_BSD), self.embedding.weight)


def sliced_experts(gate: Router, num_experts: int, hidden_size: int, intermediate_size: int, widest: int) -> Experts:
    """Experts whose hidden units are the first I of the `widest` ones drawn: two widths share what both have."""
    E, D, I = num_experts, hidden_size, intermediate_size
    W = max(widest, I)
    up_E2WD = torch.empty(E, 2, W, D).uniform_(-(D**-0.5), D**-0.5)
    down_EWD = torch.empty(E, W, D).uniform_(-(widest**-0.5), widest**-0.5)
    experts = Experts(E, D, I, zero_computation=gate.zero_computation)
    with torch.no_grad():
        experts.gate_up_proj.copy_(up_E2WD[:, :, :I].reshape(E, 2 * I, D))
        experts.down_proj.copy_(down_EWD[:, :I].transpose(1, 2))
    return experts
