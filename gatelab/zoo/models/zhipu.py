"""Zhipu (Z.ai): GLM-4.5, arXiv 2508.06471."""

from gatelab.zoo.geometry import Block, Geometry
from gatelab.zoo.parts import Attention, GatedMLP, MoE
from gatelab.zoo.published import Figure, Model

_GROUPS = (("n_group", 1), ("topk_group", 1))

_GLM_ATTENTION = Attention(heads=96, kv_heads=8, head_dim=128, qkv_bias=True, qk_norm="head")
_GLM_MOE = Block(
    89,
    (
        _GLM_ATTENTION,
        MoE(
            num_experts=160,
            top_k=8,
            intermediate_size=1536,
            router="deepseek-v3",
            router_options=_GROUPS,
            shared_experts=1,
            shared_intermediate_size=1536,
            router_bias=True,
        ),
    ),
)

GLM_45 = Model(
    name="GLM-4.5",
    geometry=Geometry(
        hidden_size=5120,
        vocab_size=151552,
        blocks=(Block(3, (_GLM_ATTENTION, GatedMLP(12288))), _GLM_MOE),
        mtp=Block(1, _GLM_MOE.parts),
    ),
    routing="sigmoid; selection on scores plus bias, top-8 without groups; weights renormalised × 2.5",
    source="THUDM/slime, scripts/models/glm4.5-355B-A32B.sh",
    total=Figure("355B"),
    active=Figure("32B"),
    notes=("355B lies between the model without its multi-token-prediction module and with it.",),
)

_AIR_ATTENTION = Attention(heads=96, kv_heads=8, head_dim=128, qkv_bias=True)
_AIR_MOE = Block(
    45,
    (
        _AIR_ATTENTION,
        MoE(
            num_experts=128,
            top_k=8,
            intermediate_size=1408,
            router="deepseek-v3",
            router_options=(*_GROUPS, ("routed_scaling_factor", 1.0)),
            shared_experts=1,
            shared_intermediate_size=1408,
            router_bias=True,
        ),
    ),
)

GLM_45_AIR = Model(
    name="GLM-4.5-Air",
    geometry=Geometry(
        hidden_size=4096,
        vocab_size=151552,
        blocks=(Block(1, (_AIR_ATTENTION, GatedMLP(10944))), _AIR_MOE),
        mtp=Block(1, _AIR_MOE.parts),
    ),
    routing="sigmoid; selection on scores plus bias, top-8 without groups; weights renormalised × 1",
    source="THUDM/slime, scripts/models/glm4.5-106B-A12B.sh",
    total=Figure("106B"),
    active=Figure("12B"),
)
