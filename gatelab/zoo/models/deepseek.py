"""DeepSeek: DeepSeekMoE (arXiv 2401.06066), V2 (2405.04434) and V3 (2412.19437)."""

from dataclasses import replace

from gatelab.zoo.geometry import Block, Geometry
from gatelab.zoo.parts import Attention, GatedMLP, LatentAttention, MoE
from gatelab.zoo.published import Figure, Model, PublishedFlops

_MHA = Attention(heads=16, kv_heads=16, head_dim=128)
_FINE_GRAINED = MoE(
    num_experts=64,
    top_k=6,
    intermediate_size=1408,
    router="deepseek-moe",
    shared_experts=2,
    shared_intermediate_size=2816,
)

DEEPSEEK_MOE_16B = Model(
    name="DeepSeekMoE-16B",
    geometry=Geometry(
        hidden_size=2048,
        vocab_size=102400,
        blocks=(Block(1, (_MHA, GatedMLP(10944))), Block(27, (_MHA, _FINE_GRAINED))),
    ),
    routing="softmax over all, top-6, not renormalised; sequence-wise balance loss 0.001; dropless",
    source="deepseek-ai/DeepSeek-MoE, DeepSeekMoE.pdf section 5.1.2 and Table 7; config.json",
    total=Figure("16.4B"),
    active=Figure("2.8B"),
    flops=PublishedFlops(74.4e12 / 4096, "training", "DeepSeekMoE.pdf: 74.4T per 4K tokens"),
)

_V2_MLA = LatentAttention(heads=128, q_lora_rank=1536)

DEEPSEEK_V2 = Model(
    name="DeepSeek-V2 / V2.5",
    aliases=("DeepSeek-V2", "DeepSeek-V2.5"),
    geometry=Geometry(
        hidden_size=5120,
        vocab_size=102400,
        blocks=(
            Block(1, (_V2_MLA, GatedMLP(12288))),
            Block(
                59,
                (
                    _V2_MLA,
                    MoE(
                        num_experts=160,
                        top_k=6,
                        intermediate_size=1536,
                        router="deepseek-v2",
                        shared_experts=2,
                        shared_intermediate_size=3072,
                    ),
                ),
            ),
        ),
    ),
    routing=(
        "softmax, best 3 of 8 groups by their maximum, top-6, not renormalised, × 16; expert, device and "
        "communication losses 0.003 / 0.05 / 0.02; device-level token dropping in training"
    ),
    source="deepseek-ai/DeepSeek-V3, inference/configs/config_236B.json; DeepSeek-V2.5 config.json (a copy)",
    total=Figure("236B"),
    active=Figure("21B"),
    flops=PublishedFlops(42e9, "2N", "quoted in arXiv 2405.17976, Table 7"),
)

_LITE_EXPERTS = replace(
    _FINE_GRAINED,
    router="deepseek-v2",
    router_options=(("n_group", 1), ("topk_group", 1), ("routed_scaling_factor", 1.0)),
)
_LITE_MLA = LatentAttention(heads=16, q_lora_rank=None)

DEEPSEEK_V2_LITE = Model(
    name="DeepSeek-V2-Lite",
    geometry=Geometry(
        hidden_size=2048,
        vocab_size=102400,
        blocks=(Block(1, (_LITE_MLA, GatedMLP(10944))), Block(26, (_LITE_MLA, _LITE_EXPERTS))),
    ),
    routing="softmax, top-6 without groups, not renormalised, × 1; expert-level balance loss 0.001 only",
    source="deepseek-ai/DeepSeek-V3, inference/configs/config_16B.json",
    total=Figure("15.7B"),
    active=Figure("2.4B"),
    notes=(
        "Queries are projected directly, not through a latent.",
        "The published 2.4B is 2.45B with its last digit cut off.",
    ),
)

_V3_MLA = LatentAttention(heads=128, q_lora_rank=1536)
_V3_MOE = Block(
    58,
    (
        _V3_MLA,
        MoE(
            num_experts=256,
            top_k=8,
            intermediate_size=2048,
            router="deepseek-v3",
            shared_experts=1,
            shared_intermediate_size=2048,
            router_bias=True,
        ),
    ),
)

DEEPSEEK_V3 = Model(
    name="DeepSeek-V3",
    geometry=Geometry(
        hidden_size=7168,
        vocab_size=129280,
        blocks=(Block(3, (_V3_MLA, GatedMLP(18432))), _V3_MOE),
        mtp=Block(1, _V3_MOE.parts),
    ),
    routing=(
        "sigmoid; selection on scores plus bias, best 4 of 8 groups by the sum of their two best, top-8; weights "
        "renormalised × 2.5; bias speed 1e-3, sequence loss 1e-4 (unverified)"
    ),
    source="deepseek-ai/DeepSeek-V3, inference/configs/config_671B.json and inference/model.py",
    total=Figure("671B"),
    active=Figure("37B"),
    notes=(
        "The published total leaves the multi-token-prediction module out; the checkpoint of 685B holds it, with "
        "copies of both tables.",
    ),
)
