"""Qwen (Alibaba): Qwen1.5-MoE, Qwen2-MoE (arXiv 2407.10671) and Qwen3-MoE (arXiv 2505.09388)."""

from gatelab.zoo.geometry import Block, Geometry
from gatelab.zoo.parts import Attention, MoE
from gatelab.zoo.published import Figure, Model

QWEN15_MOE = Model(
    name="Qwen1.5-MoE-A2.7B",
    geometry=Geometry(
        hidden_size=2048,
        vocab_size=151936,
        blocks=(
            Block(
                24,
                (
                    Attention(heads=16, kv_heads=16, head_dim=128, qkv_bias=True),
                    MoE(
                        num_experts=60,
                        top_k=4,
                        intermediate_size=1408,
                        router="qwen1.5-moe",
                        shared_experts=4,
                        shared_intermediate_size=5632,
                        shared_gate=True,
                    ),
                ),
            ),
        ),
    ),
    routing="softmax over all, top-4, not renormalised; shared experts weighed by a sigmoid of the token",
    source="transformers, configuration_qwen2_moe.py defaults",
    total=Figure("14.3B"),
    active=Figure("2.7B"),
    notes=("The four shared experts are one feed-forward network of 5632.",),
)

QWEN2_57B = Model(
    name="Qwen2-57B-A14B",
    geometry=Geometry(
        hidden_size=3584,
        vocab_size=151936,
        blocks=(
            Block(
                28,
                (
                    Attention(heads=28, kv_heads=4, head_dim=128, qkv_bias=True),
                    MoE(
                        num_experts=64,
                        top_k=8,
                        intermediate_size=2560,
                        router="qwen1.5-moe",
                        shared_experts=8,
                        shared_intermediate_size=20480,
                        shared_gate=True,
                    ),
                ),
            ),
        ),
    ),
    routing="softmax over all, top-8, not renormalised; shared experts weighed by a sigmoid of the token",
    source="Qwen/Qwen2-57B-A14B config.json",
    total=Figure("57.4B"),
    active=Figure("14B"),
)


def _qwen3(
    name: str, hidden_size: int, layers: int, heads: int, intermediate_size: int, total: Figure, active: Figure
) -> Model:
    return Model(
        name=name,
        geometry=Geometry(
            hidden_size=hidden_size,
            vocab_size=151936,
            blocks=(
                Block(
                    layers,
                    (
                        Attention(heads=heads, kv_heads=4, head_dim=128, qk_norm="head"),
                        MoE(num_experts=128, top_k=8, intermediate_size=intermediate_size, router="qwen3"),
                    ),
                ),
            ),
        ),
        routing="softmax over all, top-8, renormalised (unverified); balance loss over the global batch",
        source=f"THUDM/slime, scripts/models/{name.replace('Q', 'q')}.sh; transformers, configuration_qwen3_moe.py",
        total=total,
        active=active,
    )


QWEN3_30B = _qwen3("Qwen3-30B-A3B", 2048, 48, 32, 768, total=Figure("30.5B"), active=Figure("3.3B"))
QWEN3_235B = _qwen3("Qwen3-235B-A22B", 4096, 94, 64, 1536, total=Figure("235B"), active=Figure("22B"))
