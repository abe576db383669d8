"""Meta: Llama 4."""

from gatelab.zoo.geometry import Block, Geometry
from gatelab.zoo.parts import Attention, MoE
from gatelab.zoo.published import Figure, Model

_EXPERTS = MoE(
    num_experts=16,
    top_k=1,
    intermediate_size=8192,
    router="llama4",
    shared_experts=1,
    shared_intermediate_size=8192,
)

LLAMA4_SCOUT = Model(
    name="Llama-4-Scout",
    geometry=Geometry(
        hidden_size=5120,
        vocab_size=202048,
        blocks=(
            Block(36, (Attention(heads=40, kv_heads=8, head_dim=128, window=8192), _EXPERTS)),
            Block(12, (Attention(heads=40, kv_heads=8, head_dim=128), _EXPERTS)),
        ),
    ),
    routing="top-1 of the logits; its sigmoid multiplies the expert's input; one shared expert always on",
    source="transformers, configuration_llama4.py, Llama4TextConfig defaults",
    total=Figure("109B"),
    active=Figure("17B"),
    notes=(
        "Text tower only; the published 109B has about 0.9B of vision in it.",
        "Three of four layers attend inside chunks of 8192 positions.",
    ),
)
