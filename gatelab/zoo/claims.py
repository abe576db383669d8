"""Headline claims about published models, with both sides computed."""

from __future__ import annotations

from dataclasses import dataclass

from gatelab.zoo.geometry import Geometry
from gatelab.zoo.models import APUS_XDAN, DEEPSEEK_MOE_16B, GROK_1, QWEN15_MOE, YUAN2_M32
from gatelab.zoo.models.dense import DEEPSEEK_7B, LLAMA2_7B, LLAMA3_70B


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence that was published, and what geometry says to it.

    Args:
        model: the system it is about, by the name in the table.
        statement: the claim in our words, with who made it.
        claimed: the claimed value in `unit`, and `claimed_by` how it comes about.
        computed: the value from geometry, and `computed_by` its arithmetic.
        unit: of both.
        limit: the claim is an upper bound (a card's memory), not an equation.
        comment: what to make of it.
    """

    model: str
    statement: str
    claimed: float
    claimed_by: str
    computed: float
    computed_by: str
    unit: str
    limit: bool = False
    comment: str = ""

    def quantity(self, value: float) -> str:
        """`value` with the unit, to four digits."""
        return f"{value:,.0f} {self.unit}" if value >= 1000 else f"{value:.4g} {self.unit}"

    @property
    def holds(self) -> bool:
        """Within 2 % of the claimed value; at most that value where it is a limit."""
        if self.limit:
            return self.computed <= self.claimed
        return abs(self.computed / self.claimed - 1) <= 0.02


def _yuan() -> tuple[Claim, ...]:
    yuan, llama = YUAN2_M32.geometry, LLAMA3_70B
    by_weights = llama.active_params / yuan.active_params
    with_attention = llama.flops_per_token(4096) / yuan.flops_per_token(4096)
    return (
        Claim(
            model=YUAN2_M32.name,
            statement="7.4 GFLOP per token (paper)",
            claimed=7.4,
            claimed_by="2 × 3.7B active, forward",
            computed=2 * yuan.active_params / 1e9,
            computed_by=f"2 × {yuan.active_params / 1e9:.3f}B",
            unit="GFLOP",
            comment=f"Attention at 4096 positions is not in it; with it {yuan.flops_per_token(4096) / 1e9:.2f} GFLOP.",
        ),
        Claim(
            model=YUAN2_M32.name,
            statement="1/19 of the computation of Llama-3-70B (paper)",
            claimed=140 / 7.4,
            claimed_by="140 / 7.4 GFLOP",
            computed=by_weights,
            computed_by=f"{llama.active_params / 1e9:.2f}B / {yuan.active_params / 1e9:.3f}B active",
            unit="times less",
            comment=f"With attention at 4096 positions {with_attention:.1f} times less.",
        ),
        Claim(
            model=YUAN2_M32.name,
            statement="attention router: accuracy + 3.8 % (README)",
            claimed=3.8,
            claimed_by="as printed",
            computed=100 * (1 - 2.109 / 2.117),
            computed_by="test loss 2.117 → 2.109 (paper, Table 1)",
            unit="%",
            comment="The decimal point is misplaced, and it is loss, not accuracy.",
        ),
    )


def _deepseek_moe() -> tuple[Claim, ...]:
    def training_per_4k(geometry: Geometry) -> float:
        return geometry.training_flops_per_token(4096) * 4096 / 1e12

    moe = training_per_4k(DEEPSEEK_MOE_16B.geometry)
    dense = (("DeepSeek 7B", DEEPSEEK_7B, 183.5), ("LLaMA2 7B", LLAMA2_7B, 187.9))
    weights = DEEPSEEK_MOE_16B.geometry.weight_bytes("bf16") / 1e9
    return (
        *(
            Claim(
                model=DEEPSEEK_MOE_16B.name,
                statement=f"about 40 % of the computation of {name} (paper)",
                claimed=100 * 74.4 / published,
                claimed_by=f"74.4T / {published}T per 4K tokens, forward and backward",
                computed=100 * moe / training_per_4k(geometry),
                computed_by=f"{moe:.1f}T / {training_per_4k(geometry):.1f}T",
                unit="%",
            )
            for name, geometry, published in dense
        ),
        Claim(
            model=DEEPSEEK_MOE_16B.name,
            statement="runs on one 40 GB card without quantisation (press)",
            claimed=40,
            claimed_by="the card",
            computed=weights,
            computed_by=f"{DEEPSEEK_MOE_16B.geometry.total_params / 1e9:.2f}B × 2 bytes (bf16)",
            unit="GB",
            limit=True,
            comment=f"{40 - weights:.1f} GB are left for the key-value cache and activations.",
        ),
    )


def _apus() -> tuple[Claim, ...]:
    apus = APUS_XDAN.geometry
    return (
        Claim(
            model=APUS_XDAN.name,
            statement="136B parameters (README)",
            claimed=136,
            claimed_by="4 × 34B",
            computed=apus.total_params / 1e9,
            computed_by="its config: four experts, one attention per layer, one pair of tables",
            unit="B",
        ),
        Claim(
            model=APUS_XDAN.name,
            statement="30B active parameters (README)",
            claimed=30,
            claimed_by="as printed",
            computed=apus.active_params / 1e9,
            computed_by="its config: two of four experts",
            unit="B",
        ),
        Claim(
            model=APUS_XDAN.name,
            statement="quantised, runs on one 24 GB card (press)",
            claimed=24,
            claimed_by="the card",
            computed=apus.weight_bytes("int4") / 1e9,
            computed_by=f"{apus.total_params / 1e9:.1f}B × half a byte (int4)",
            unit="GB",
            limit=True,
            comment=f"It would take {24e9 * 8 / apus.total_params:.2f} bits per weight and no cache.",
        ),
    )


def _totals() -> tuple[Claim, ...]:
    grok, qwen = GROK_1.geometry, QWEN15_MOE.geometry
    return (
        Claim(
            model=QWEN15_MOE.name,
            statement="2.7B active parameters (model card)",
            claimed=2.7,
            claimed_by="as printed",
            computed=qwen.active_params / 1e9,
            computed_by="both tables included",
            unit="B",
            comment=f"{qwen.active_params_no_embeddings / 1e9:.2f}B without the tables.",
        ),
        Claim(
            model=GROK_1.name,
            statement="314B parameters (README)",
            claimed=314,
            claimed_by="as printed",
            computed=grok.total_params / 1e9,
            computed_by="8 × 3 × 6144 × 32768 in experts per layer, 64 layers, and the rest",
            unit="B",
        ),
    )


def _gpt4() -> tuple[Claim, ...]:
    return (
        Claim(
            model="GPT-4",
            statement="16 experts, about 280B active parameters (leak, unverified)",
            claimed=280,
            claimed_by="as leaked",
            computed=2 * 111 + 55,
            computed_by="2 of 16 experts × 111B + 55B shared attention (same leak)",
            unit="B",
            comment=f"All 16 make {(16 * 111 + 55) / 1000:.2f}T, the leaked 1.8T. None of it is official.",
        ),
        Claim(
            model="GPT-4",
            statement="560 TFLOP per forward pass (leak)",
            claimed=560e3,
            claimed_by="as printed",
            computed=2 * 280.0,
            computed_by="2 × 280B active, per token",
            unit="GFLOP",
            comment="560 GFLOP per token: the claim is a thousand times too large.",
        ),
    )


CLAIMS: tuple[Claim, ...] = (*_yuan(), *_deepseek_moe(), *_totals(), *_gpt4(), *_apus())
