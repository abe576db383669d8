"""The tiny blocks of docs/hf_blocks.py, for the tests."""

import importlib.util
from pathlib import Path

_SPEC = importlib.util.spec_from_file_location("hf_blocks_docs", Path(__file__).parents[2] / "docs" / "hf_blocks.py")
assert _SPEC is not None
assert _SPEC.loader is not None
docs = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(docs)

tiny_block, block_classes, table, PAGE = docs.tiny_block, docs.block_classes, docs.table, docs.PAGE

# model, class: the ones that must convert whatever else does.
NAMED = [
    ("mixtral", "MixtralSparseMoeBlock"),
    ("qwen2_moe", "Qwen2MoeSparseMoeBlock"),
    ("qwen3_moe", "Qwen3MoeSparseMoeBlock"),
    ("olmoe", "OlmoeSparseMoeBlock"),
    ("phimoe", "PhimoeSparseMoeBlock"),
    ("dbrx", "DbrxFFN"),
    ("gpt_oss", "GptOssMLP"),
    ("llama4", "Llama4TextMoe"),
    ("deepseek_v3", "DeepseekV3MoE"),
    ("glm4_moe", "Glm4MoeMoE"),
    ("granitemoe", "GraniteMoeMoE"),
    ("minimax", "MiniMaxSparseMoeBlock"),
    ("longcat_flash", "LongcatFlashMoE"),
    ("hunyuan_v1_moe", "HunYuanMoEV1Moe"),
    ("jamba", "JambaSparseMoeBlock"),
    ("switch_transformers", "SwitchTransformersSparseMLP"),
    ("ernie4_5_moe", "Ernie4_5_MoeSparseMoeBlock"),
]
