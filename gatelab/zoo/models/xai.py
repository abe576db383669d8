"""xAI: Grok-1."""

from gatelab.zoo.geometry import Block, Geometry
from gatelab.zoo.parts import Attention, MoE
from gatelab.zoo.published import Figure, Model

GROK_1 = Model(
    name="Grok-1",
    geometry=Geometry(
        hidden_size=6144,
        vocab_size=131072,
        tie_embeddings=True,
        blocks=(
            Block(
                64,
                (
                    Attention(heads=48, kv_heads=8, head_dim=128),
                    MoE(num_experts=8, top_k=2, intermediate_size=32768, router="grok-1", activation="geglu"),
                ),
                norms=4,
            ),
        ),
    ),
    routing="float32 softmax over all experts, top-2, not renormalised",
    source="xai-org/grok-1, run.py and model.py",
    total=Figure("314B"),
    active=Figure("86B", unverified=True),
    notes=(
        "Four norms per layer: before and after attention and experts.",
        "The README has 314B only, the announcement a quarter of the weights active (78.5B); 86B is second-hand "
        "(unverified), as is the 85B in XVERSE's comparison. Two of eight experts and everything else make 27 %.",
    ),
)
