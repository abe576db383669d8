"""Microsoft: Phi-3.5-MoE, arXiv 2404.14219; its router is GRIN's, arXiv 2409.12136."""

from gatelab.zoo.geometry import Block, Geometry
from gatelab.zoo.parts import Attention, MoE
from gatelab.zoo.published import Figure, Model

PHI35_MOE = Model(
    name="Phi-3.5-MoE",
    geometry=Geometry(
        hidden_size=4096,
        vocab_size=32064,
        norm_bias=True,
        head_bias=True,
        blocks=(
            Block(
                32,
                (
                    Attention(heads=32, kv_heads=8, head_dim=128, qkv_bias=True, out_bias=True),
                    MoE(num_experts=16, top_k=2, intermediate_size=6400, router="grin"),
                ),
                norm_bias=True,
            ),
        ),
    ),
    routing="SparseMixer-v2: two masked top-1 choices in turn, weights from the masked softmax, not renormalised",
    source="transformers, configuration_phimoe.py defaults",
    total=Figure("41.9B"),
    active=Figure("6.6B"),
    notes=("LayerNorms with bias; biases on attention and output matrix as in the released config (unverified).",),
)
