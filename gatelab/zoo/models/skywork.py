"""Skywork (Kunlun Tiangong): Skywork-MoE, arXiv 2406.06563."""

from gatelab.zoo.geometry import Block, Geometry
from gatelab.zoo.parts import Attention, MoE
from gatelab.zoo.published import Figure, Model

SKYWORK_MOE = Model(
    name="Skywork-MoE (146B-A22B)",
    geometry=Geometry(
        hidden_size=4608,
        vocab_size=65532,
        blocks=(
            Block(
                52,
                (
                    Attention(heads=36, kv_heads=36, head_dim=128),
                    MoE(num_experts=16, top_k=2, intermediate_size=12288, router="skywork-moe"),
                ),
            ),
        ),
    ),
    routing="softmax over std-normalised logits (λ = 1), top-2, renormalised; auxiliary coefficient adapted per layer",
    source="SkyworkAI/Skywork-MoE technical report, Table 2; Skywork/Skywork-MoE-Base config.json",
    total=Figure("146B"),
    active=Figure("22B"),
    notes=("Vocabulary as in config.json; the report says 65,536.",),
)
