"""Databricks: DBRX."""

from gatelab.zoo.geometry import Block, Geometry
from gatelab.zoo.parts import Attention, MoE
from gatelab.zoo.published import Figure, Model

DBRX = Model(
    name="DBRX",
    geometry=Geometry(
        hidden_size=6144,
        vocab_size=100352,
        blocks=(
            Block(
                40,
                (
                    Attention(heads=48, kv_heads=8, head_dim=128),
                    MoE(num_experts=16, top_k=4, intermediate_size=10752, router="dbrx"),
                ),
            ),
        ),
    ),
    routing="softmax over all, top-4, renormalised; balance loss 0.05",
    source="databricks/dbrx, model/config.json and README.md",
    total=Figure("132B"),
    active=Figure("36B"),
)
