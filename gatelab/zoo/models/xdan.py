"""xDAN with APUS: APUS-xDAN-4.0."""

from gatelab.zoo.geometry import Block, Geometry
from gatelab.zoo.parts import Attention, MoE
from gatelab.zoo.published import Figure, Model

APUS_XDAN = Model(
    name="APUS-xDAN-4.0-MoE",
    geometry=Geometry(
        hidden_size=7168,
        vocab_size=64000,
        blocks=(
            Block(
                60,
                (
                    Attention(heads=56, kv_heads=8, head_dim=128),
                    MoE(num_experts=4, top_k=2, intermediate_size=20480, router="mixtral"),
                ),
            ),
        ),
    ),
    routing="as Mixtral: top-2 of the logits, then softmax over the two",
    source="xDAN2099/APUS-xDAN-4.0-MoE-v2 config.json; xDAN-AI/APUS-xDAN-4.0-MOE README",
    total=Figure("136B"),
    active=Figure("30B"),
    disputed=(
        "136B is 4 × 34B. The configuration is Yi-34B with four experts: attention and tables exist once, which "
        "makes 113.7B, and two experts per token make 60.8B active, not 30B."
    ),
)
