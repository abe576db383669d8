"""XVERSE (Yuanxiang): XVERSE-MoE."""

from gatelab.zoo.geometry import Block, Geometry
from gatelab.zoo.parts import Attention, MoE
from gatelab.zoo.published import Figure, Model

_ROUTING = "softmax, top-6, two shared experts; the rest of the router is not published (unverified)"
_STAND_IN = "The recipe deepseek-moe stands in for its router (unverified)."

XVERSE_A4 = Model(
    name="XVERSE-MoE-A4.2B",
    geometry=Geometry(
        hidden_size=2560,
        vocab_size=100534,
        blocks=(
            Block(
                28,
                (
                    Attention(heads=32, kv_heads=32, head_dim=80),
                    MoE(
                        num_experts=64,
                        top_k=6,
                        intermediate_size=1728,
                        router="deepseek-moe",
                        shared_experts=2,
                        shared_intermediate_size=3456,
                    ),
                ),
            ),
        ),
    ),
    routing=_ROUTING,
    source="xverse-ai/XVERSE-MoE-A4.2B, README_EN.md; xverse/XVERSE-MoE-A4.2B config.json",
    total=Figure("25.8B"),
    active=Figure("4.2B"),
    notes=(_STAND_IN,),
)

XVERSE_A36 = Model(
    name="XVERSE-MoE-A36B",
    geometry=Geometry(
        hidden_size=6144,
        vocab_size=100534,
        blocks=(
            Block(
                50,
                (
                    Attention(heads=48, kv_heads=16, head_dim=128),
                    MoE(
                        num_experts=64,
                        top_k=6,
                        intermediate_size=4096,
                        router="deepseek-moe",
                        shared_experts=2,
                        shared_intermediate_size=8192,
                    ),
                ),
            ),
        ),
    ),
    routing=_ROUTING,
    source="xverse-ai/XVERSE-MoE-A36B, README table",
    total=Figure("255.4B"),
    active=Figure("36.5B"),
    notes=(
        "Layers, widths, heads and experts are in the README; 16 key-value heads and the vocabulary are inferred, "
        "since they give both published figures to the digit (unverified).",
        _STAND_IN,
    ),
)
