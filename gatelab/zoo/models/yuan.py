"""IEIT-Yuan: Yuan 2.0-M32, arXiv 2405.17976."""

from gatelab.zoo.geometry import Block, Geometry
from gatelab.zoo.parts import Attention, LocalizedFiltering, MoE
from gatelab.zoo.published import Figure, Model, PublishedFlops

YUAN2_M32 = Model(
    name="Yuan2.0-M32",
    geometry=Geometry(
        hidden_size=2048,
        vocab_size=135040,
        tie_embeddings=True,
        blocks=(
            Block(
                24,
                (
                    LocalizedFiltering(),
                    Attention(heads=16, kv_heads=16, head_dim=256),
                    MoE(num_experts=32, top_k=2, intermediate_size=8192, router="yuan2-m32", attention_router=True),
                ),
            ),
        ),
    ),
    routing="attention over experts inside one token, in float32; top-2, then softmax over the two; no balance loss",
    source="IEIT-Yuan/Yuan2.0-M32, examples/pretrain_yuan2.0_moe_2x32B.sh; IEITYuan/Yuan2-M32-hf config.json",
    total=Figure("40B"),
    active=Figure("3.7B"),
    flops=PublishedFlops(7.4e9, "2N", "arXiv 2405.17976"),
    notes=(
        "Tied tables: the Megatron-side config.json says so, the Hugging Face one leaves it to a default of true.",
        "LFA is two convolutions in front of the queries and keys of self-attention; the router does not read it.",
    ),
)
