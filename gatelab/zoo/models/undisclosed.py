"""Systems without a public geometry: what is known, and which disclosed model stands in."""

from gatelab.zoo.published import Undisclosed

UNDISCLOSED = (
    Undisclosed(
        "GPT-4",
        "leaked, not official (unverified): 1.8T parameters, 16 experts of which 2 serve a token, about 280B active; "
        "2 × 280e9 = 560 GFLOP per token",
    ),
    Undisclosed("Gemini 1.5", "a mixture of experts by its report; nothing else is public"),
    Undisclosed(
        "Skywork 2.0 / 3.0 (Tiangong)",
        "mixtures of experts of the 100B class and of 400B; nothing else is public",
        stand_in="Skywork-MoE (146B-A22B)",
        aliases=("Skywork 2.0", "Skywork 3.0", "Tiangong"),
    ),
    Undisclosed(
        "MiniMax abab6 / abab6.5 / abab6.5s",
        "mixtures of experts; abab6.5 has a trillion parameters and a context of 200k by its announcement",
        stand_in="MiniMax-Text-01 (successor of abab6.5)",
        aliases=("abab6", "abab6.5", "abab6.5s"),
    ),
    Undisclosed("Step-2", "a mixture of experts of 1T parameters; nothing else is public"),
    Undisclosed("Doubao", "named among mixtures of experts; nothing is public"),
    Undisclosed(
        "Yi-Lightning",
        "fine-grained experts, routed hierarchically over expert-parallel groups; no numbers are public",
    ),
    Undisclosed(
        "Xindan (xDAN)", "its disclosed model is APUS-xDAN-4.0; no other is public", stand_in="APUS-xDAN-4.0-MoE"
    ),
)
