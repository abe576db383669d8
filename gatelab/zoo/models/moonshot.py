"""Moonshot AI: Kimi K2, arXiv 2507.20534."""

from gatelab.zoo.geometry import Block, Geometry
from gatelab.zoo.parts import GatedMLP, LatentAttention, MoE
from gatelab.zoo.published import Figure, Model

_MLA = LatentAttention(heads=64, q_lora_rank=1536)

KIMI_K2 = Model(
    name="Kimi-K2",
    geometry=Geometry(
        hidden_size=7168,
        vocab_size=163840,
        blocks=(
            Block(1, (_MLA, GatedMLP(18432))),
            Block(
                60,
                (
                    _MLA,
                    MoE(
                        num_experts=384,
                        top_k=8,
                        intermediate_size=2048,
                        router="kimi-k2",
                        shared_experts=1,
                        shared_intermediate_size=2048,
                        router_bias=True,
                    ),
                ),
            ),
        ),
    ),
    routing="sigmoid; selection on scores plus bias, top-8 without groups; weights renormalised × 2.827",
    source="MoonshotAI/Kimi-K2, README.md; THUDM/slime, scripts/models/kimi-k2.sh",
    total=Figure("1T"),
    active=Figure("32B"),
    notes=('"1T" is rounded; LongCat\'s comparison table lists 1043B.',),
)
