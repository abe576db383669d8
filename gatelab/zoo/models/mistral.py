"""Mistral AI: Mixtral, arXiv 2401.04088."""

from gatelab.zoo.geometry import Block, Geometry
from gatelab.zoo.parts import Attention, MoE
from gatelab.zoo.published import Figure, Model, PublishedFlops

MIXTRAL_8X7B = Model(
    name="Mixtral-8x7B",
    geometry=Geometry(
        hidden_size=4096,
        vocab_size=32000,
        blocks=(
            Block(
                32,
                (
                    Attention(heads=32, kv_heads=8, head_dim=128),
                    MoE(num_experts=8, top_k=2, intermediate_size=14336, router="mixtral"),
                ),
            ),
        ),
    ),
    routing="top-2 of the logits, then softmax over the two",
    source="transformers, configuration_mixtral.py defaults; mistralai/mistral-inference, moe.py",
    total=Figure("46.7B"),
    active=Figure("12.9B"),
    flops=PublishedFlops(25.8e9, "2N", "quoted in arXiv 2405.17976, Table 7"),
)
