"""Ai2: OLMoE, arXiv 2409.02060."""

from gatelab.zoo.geometry import Block, Geometry
from gatelab.zoo.parts import Attention, MoE
from gatelab.zoo.published import Figure, Model

OLMOE = Model(
    name="OLMoE-1B-7B",
    geometry=Geometry(
        hidden_size=2048,
        vocab_size=50304,
        blocks=(
            Block(
                16,
                (
                    Attention(heads=16, kv_heads=16, head_dim=128, qk_norm="full"),
                    MoE(num_experts=64, top_k=8, intermediate_size=1024, router="olmoe"),
                ),
            ),
        ),
    ),
    routing="softmax over all, top-8, not renormalised; balance loss 0.01 and z-loss 0.001 (unverified)",
    source="transformers, configuration_olmoe.py",
    total=Figure("6.9B"),
    active=Figure("1.3B"),
    notes=("Expert width 1024 (unverified): the default of the transformers class is 2048, and only 1024 makes 6.9B.",),
)
