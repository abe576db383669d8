"""Tencent: Hunyuan-Large, arXiv 2411.02265."""

from gatelab.zoo.geometry import Block, Geometry
from gatelab.zoo.parts import Attention, MoE
from gatelab.zoo.published import Figure, Model

_EXPERTS = MoE(
    num_experts=16,
    top_k=1,
    intermediate_size=18304,
    router="hunyuan-large",
    shared_experts=1,
    shared_intermediate_size=18304,
)

HUNYUAN_LARGE = Model(
    name="Hunyuan-Large",
    geometry=Geometry(
        hidden_size=6400,
        vocab_size=129024,
        tie_embeddings=True,
        blocks=(
            Block(32, (Attention(heads=80, kv_heads=8, head_dim=80, qk_norm="head"), _EXPERTS)),
            Block(32, (Attention(heads=80, kv_heads=8, head_dim=80, qk_norm="head", reuses_kv=True), _EXPERTS)),
        ),
    ),
    routing=(
        "float32 softmax, top-1, one shared expert; tokens dropped by a full expert go at random to one with room "
        "(off in the released inference config)"
    ),
    source="tencent/Tencent-Hunyuan-Large, Hunyuan-A52B-Instruct/config.json and models/modeling_hunyuan.py",
    total=Figure("389B"),
    active=Figure("52B"),
    notes=("Every second layer reuses the keys and values of the one below it.",),
)
