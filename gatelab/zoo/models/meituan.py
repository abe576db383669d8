"""Meituan: LongCat-Flash, arXiv 2509.01322."""

from gatelab.zoo.geometry import Block, Geometry
from gatelab.zoo.parts import GatedMLP, LatentAttention, MoE
from gatelab.zoo.published import Figure, Model

_MLA = LatentAttention(heads=64, q_lora_rank=1536)
_MLP = GatedMLP(12288)

LONGCAT_FLASH = Model(
    name="LongCat-Flash",
    geometry=Geometry(
        hidden_size=6144,
        vocab_size=131072,
        blocks=(
            Block(
                28,
                (
                    _MLA,
                    MoE(
                        num_experts=512,
                        top_k=12,
                        intermediate_size=2048,
                        router="longcat-flash",
                        zero_experts=256,
                        router_bias=True,
                    ),
                    _MLP,
                    _MLA,
                    _MLP,
                ),
                norms=4,
            ),
        ),
    ),
    routing="float32 softmax over 512 + 256 identity experts, top-12 of scores plus bias; scores × 6, not renormalised",
    source="transformers, configuration_longcat_flash.py and modular_longcat_flash.py",
    total=Figure("560B"),
    active=Figure("27B"),
    notes=(
        "A layer is two attentions, two dense networks and one MoE on a shortcut.",
        "Twelve real experts are the most a token can use, none the least: 31.4B and 18.7B without the input "
        "embedding, which the report prints as 31.3B and 18.6B. The mean token uses eight, 12 × 512/768.",
    ),
)
