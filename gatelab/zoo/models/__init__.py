"""The published models, by house, and the look-up by name."""

from __future__ import annotations

import difflib

from gatelab.zoo.models.allenai import OLMOE
from gatelab.zoo.models.databricks import DBRX
from gatelab.zoo.models.deepseek import DEEPSEEK_MOE_16B, DEEPSEEK_V2, DEEPSEEK_V2_LITE, DEEPSEEK_V3
from gatelab.zoo.models.meituan import LONGCAT_FLASH
from gatelab.zoo.models.meta import LLAMA4_SCOUT
from gatelab.zoo.models.microsoft import PHI35_MOE
from gatelab.zoo.models.minimax import MINIMAX_TEXT_01
from gatelab.zoo.models.mistral import MIXTRAL_8X7B
from gatelab.zoo.models.moonshot import KIMI_K2
from gatelab.zoo.models.openai import GPT_OSS_20B, GPT_OSS_120B
from gatelab.zoo.models.qwen import QWEN2_57B, QWEN3_30B, QWEN3_235B, QWEN15_MOE
from gatelab.zoo.models.skywork import SKYWORK_MOE
from gatelab.zoo.models.tencent import HUNYUAN_LARGE
from gatelab.zoo.models.undisclosed import UNDISCLOSED
from gatelab.zoo.models.xai import GROK_1
from gatelab.zoo.models.xdan import APUS_XDAN
from gatelab.zoo.models.xverse import XVERSE_A4, XVERSE_A36
from gatelab.zoo.models.yuan import YUAN2_M32
from gatelab.zoo.models.zhipu import GLM_45, GLM_45_AIR
from gatelab.zoo.published import Model, Undisclosed

MODELS: tuple[Model, ...] = (
    YUAN2_M32,
    SKYWORK_MOE,
    MIXTRAL_8X7B,
    GROK_1,
    QWEN15_MOE,
    DEEPSEEK_MOE_16B,
    DEEPSEEK_V2,
    XVERSE_A4,
    XVERSE_A36,
    APUS_XDAN,
    MINIMAX_TEXT_01,
    OLMOE,
    PHI35_MOE,
    DBRX,
    QWEN2_57B,
    QWEN3_30B,
    QWEN3_235B,
    DEEPSEEK_V2_LITE,
    DEEPSEEK_V3,
    KIMI_K2,
    GPT_OSS_20B,
    GPT_OSS_120B,
    LLAMA4_SCOUT,
    GLM_45,
    GLM_45_AIR,
    HUNYUAN_LARGE,
    LONGCAT_FLASH,
)


def find(name: str) -> Model | Undisclosed:
    """The published system called `name`.

    Case and punctuation do not matter, and a prefix that only one system has will do. A full name wins over a prefix
    ("glm-4.5" is not GLM-4.5-Air).

    Raises:
        ValueError: no system, or several, go by that name; the message lists the nearest.
    """
    wanted = _key(name)
    systems: tuple[Model | Undisclosed, ...] = (*MODELS, *UNDISCLOSED)
    keys = [(_key(called), system) for system in systems for called in (system.name, *system.aliases)]
    exact = [system for key, system in keys if key == wanted]
    if exact:
        return exact[0]
    matches = {system.name: system for key, system in keys if wanted and key.startswith(wanted)}
    if len(matches) == 1:
        return next(iter(matches.values()))
    if matches:
        raise ValueError(f"model {name!r} is ambiguous: {', '.join(matches)}; give more of the name")
    names = {key: system.name for key, system in keys}
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.3) or list(names)[:3]
    raise ValueError(f"no published model {name!r}; nearest: {', '.join(names[key] for key in near)}")


def _key(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
