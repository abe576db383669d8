"""The verdict on every headline claim, and the arithmetic behind it."""

import pytest

from gatelab.zoo import CLAIMS, MODELS, UNDISCLOSED
from gatelab.zoo.hardware import CARDS, cards_that_hold

VERDICTS = {
    ("Yuan2.0-M32", "7.4 GFLOP"): True,  # 2 × 3.704B
    ("Yuan2.0-M32", "1/19"): True,  # 70.55 / 3.704 = 19.05
    ("Yuan2.0-M32", "accuracy"): False,  # 1 − 2.109 / 2.117 = 0.38 %
    ("DeepSeekMoE-16B", "DeepSeek 7B"): True,  # 75.9 / 184.3 = 41.2 %, published 74.4 / 183.5 = 40.5 %
    ("DeepSeekMoE-16B", "LLaMA2 7B"): True,  # 75.9 / 188.8 = 40.2 %, published 74.4 / 187.9 = 39.6 %
    ("DeepSeekMoE-16B", "40 GB"): True,  # 16.38B × 2 bytes = 32.8 GB
    ("Qwen1.5-MoE-A2.7B", "2.7B"): True,  # 2.689B with both tables
    ("Grok-1", "314B"): True,  # 315.7B
    ("GPT-4", "16 experts"): True,  # 2 × 111 + 55 = 277
    ("GPT-4", "560 TFLOP"): False,  # 560 GFLOP
    ("APUS-xDAN-4.0-MoE", "136B"): False,  # 113.7B
    ("APUS-xDAN-4.0-MoE", "30B"): False,  # 60.8B
    ("APUS-xDAN-4.0-MoE", "24 GB"): False,  # 113.7B / 2 bytes = 56.8 GB
}


def claim(model: str, words: str):
    (found,) = (c for c in CLAIMS if c.model == model and words in c.statement)
    return found


@pytest.mark.parametrize(("model", "words"), VERDICTS)
def test_verdict(model: str, words: str):
    assert claim(model, words).holds is VERDICTS[model, words]


def test_every_claim_is_about_a_system_of_the_zoo_and_judged_above():
    assert {c.model for c in CLAIMS} <= {system.name for system in (*MODELS, *UNDISCLOSED)}
    assert len(CLAIMS) == len(VERDICTS)


@pytest.mark.parametrize(
    ("model", "words", "claimed", "computed"),
    [
        ("Yuan2.0-M32", "7.4 GFLOP", 7.4, 7.408),
        ("Yuan2.0-M32", "1/19", 18.92, 19.05),
        ("Yuan2.0-M32", "accuracy", 3.8, 0.378),
        ("DeepSeekMoE-16B", "DeepSeek 7B", 40.54, 41.20),
        ("DeepSeekMoE-16B", "40 GB", 40, 32.75),
        ("Qwen1.5-MoE-A2.7B", "2.7B", 2.7, 2.689),
        ("Grok-1", "314B", 314, 315.7),
        ("GPT-4", "16 experts", 280, 277),
        ("GPT-4", "560 TFLOP", 560_000, 560),
        ("APUS-xDAN-4.0-MoE", "136B", 136, 113.7),
        ("APUS-xDAN-4.0-MoE", "24 GB", 24, 56.83),
    ],
)
def test_both_sides(model: str, words: str, claimed: float, computed: float):
    c = claim(model, words)
    assert c.claimed == pytest.approx(claimed, rel=5e-4)
    assert c.computed == pytest.approx(computed, rel=5e-4)


def test_cards_count_weights_alone_in_decimal_gigabytes():
    assert list(CARDS) == [24, 40, 48, 80, 96, 141, 192]
    assert cards_that_hold(40 * 10**9) == [40, 48, 80, 96, 141, 192]
    assert cards_that_hold(40 * 10**9 + 1) == [48, 80, 96, 141, 192]
    assert cards_that_hold(10**12) == []
