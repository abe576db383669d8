"""MiniMax: MiniMax-Text-01, arXiv 2501.08313."""

from gatelab.zoo.geometry import Block, Geometry
from gatelab.zoo.parts import Attention, LightningAttention, MoE
from gatelab.zoo.published import Figure, Model

_EXPERTS = MoE(num_experts=32, top_k=2, intermediate_size=9216, router="minimax-01")

MINIMAX_TEXT_01 = Model(
    name="MiniMax-Text-01 (successor of abab6.5)",
    geometry=Geometry(
        hidden_size=6144,
        vocab_size=200064,
        blocks=(
            Block(70, (LightningAttention(heads=64, head_dim=128), _EXPERTS)),
            Block(10, (Attention(heads=64, kv_heads=8, head_dim=128), _EXPERTS)),
        ),
    ),
    routing="softmax, top-2, renormalised; balance loss, token dropping and a router synchronised over devices",
    source="MiniMax-AI/MiniMax-01, MiniMax-Text-01-Model-Card.md; MiniMaxAI/MiniMax-Text-01 config.json",
    total=Figure("456B"),
    active=Figure("45.9B"),
    notes=(
        "One softmax attention after every seven lightning attentions; 8 key-value heads are assumed (unverified).",
    ),
)
