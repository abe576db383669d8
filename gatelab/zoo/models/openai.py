"""OpenAI: gpt-oss, arXiv 2508.10925."""

from gatelab.zoo.geometry import Block, Geometry
from gatelab.zoo.parts import Attention, MoE
from gatelab.zoo.published import Figure, Model


def _gpt_oss(name: str, layers: int, num_experts: int, source: str, total: Figure, active: Figure) -> Model:
    experts = MoE(
        num_experts=num_experts,
        top_k=4,
        intermediate_size=2880,
        router="gpt-oss",
        router_bias=True,
        expert_bias=True,
        activation="swiglu-oss",
    )

    def attention(window: int | None) -> Attention:
        return Attention(heads=64, kv_heads=8, head_dim=64, window=window, qkv_bias=True, out_bias=True, sinks=True)

    return Model(
        name=name,
        geometry=Geometry(
            hidden_size=2880,
            vocab_size=201088,
            blocks=(Block(layers // 2, (attention(128), experts)), Block(layers // 2, (attention(None), experts))),
        ),
        routing="linear with bias, top-4 of the logits, then softmax over the four; biased experts, clamped SwiGLU",
        source=source,
        total=total,
        active=active,
        notes=(
            "Published as 21B and 117B; the finer figures are unverified. Half of the layers see 128 positions.",
            "The published active parameters count the output matrix and not the input embedding.",
        ),
    )


GPT_OSS_20B = _gpt_oss(
    "gpt-oss-20b",
    24,
    32,
    "transformers, configuration_gpt_oss.py; slime-ascend, scripts/models/gpt-oss-20B.sh",
    Figure("20.9B", unverified=True),
    Figure("3.6B"),
)
GPT_OSS_120B = _gpt_oss(
    "gpt-oss-120b",
    36,
    128,
    "transformers, configuration_gpt_oss.py defaults",
    Figure("116.8B", unverified=True),
    Figure("5.1B"),
)
