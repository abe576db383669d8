"""transformers' own models, built without memory on the meta device, as the oracle: every parameter and every FLOP.

Configurations are written out here, not derived from our geometry. Selection biases are buffers in transformers and
parameters to us, so both sides count them.
"""

from typing import Any

import pytest
import torch
import transformers as hf
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.dbrx.configuration_dbrx import DbrxAttentionConfig

from gatelab.zoo import Geometry, Model, find
from gatelab.zoo.models.dense import DEEPSEEK_7B, LLAMA2_7B, LLAMA3_70B


def _dbrx_attention() -> hf.PreTrainedConfig:
    attention = DbrxAttentionConfig(kv_n_heads=8)
    attention.rope_theta = 5e5  # pyright: ignore[reportAttributeAccessIssue]: 5.23 reads it and does not declare it
    return attention


CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "Mixtral-8x7B": ("mixtral", {}),
    "Qwen1.5-MoE-A2.7B": ("qwen2_moe", {}),
    "Qwen2-57B-A14B": (
        "qwen2_moe",
        {
            "hidden_size": 3584,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 2560,
            "shared_expert_intermediate_size": 20480,
        },
    ),
    "Qwen3-30B-A3B": (
        "qwen3_moe",
        {
            "hidden_size": 2048,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "moe_intermediate_size": 768,
            "tie_word_embeddings": False,
        },
    ),
    "Qwen3-235B-A22B": (
        "qwen3_moe",
        {
            "hidden_size": 4096,
            "num_hidden_layers": 94,
            "num_attention_heads": 64,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "moe_intermediate_size": 1536,
            "tie_word_embeddings": False,
        },
    ),
    "DeepSeek-V2 / V2.5": (
        "deepseek_v2",
        {
            "vocab_size": 102400,
            "hidden_size": 5120,
            "num_hidden_layers": 60,
            "first_k_dense_replace": 1,
            "num_attention_heads": 128,
            "num_key_value_heads": 128,
            "q_lora_rank": 1536,
            "n_routed_experts": 160,
            "n_shared_experts": 2,
            "moe_intermediate_size": 1536,
            "intermediate_size": 12288,
        },
    ),
    "DeepSeek-V2-Lite": (
        "deepseek_v2",
        {
            "vocab_size": 102400,
            "hidden_size": 2048,
            "num_hidden_layers": 27,
            "first_k_dense_replace": 1,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "q_lora_rank": None,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "moe_intermediate_size": 1408,
            "intermediate_size": 10944,
        },
    ),
    "DeepSeek-V3": ("deepseek_v3", {}),
    "Kimi-K2": (
        "deepseek_v3",
        {
            "vocab_size": 163840,
            "first_k_dense_replace": 1,
            "num_attention_heads": 64,
            "num_key_value_heads": 64,
            "n_routed_experts": 384,
        },
    ),
    "gpt-oss-20b": ("gpt_oss", {"num_hidden_layers": 24, "num_local_experts": 32}),
    "gpt-oss-120b": ("gpt_oss", {}),
    "OLMoE-1B-7B": ("olmoe", {"intermediate_size": 1024}),
    "Phi-3.5-MoE": ("phimoe", {"attention_bias": True, "lm_head_bias": True}),
    "DBRX": (
        "dbrx",
        {
            "d_model": 6144,
            "n_heads": 48,
            "n_layers": 40,
            "vocab_size": 100352,
            "attn_config": _dbrx_attention(),
            "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4},
        },
    ),
    "Llama-4-Scout": ("llama4_text", {}),
    "GLM-4.5": (
        "glm4_moe",
        {
            "hidden_size": 5120,
            "num_hidden_layers": 92,
            "first_k_dense_replace": 3,
            "num_attention_heads": 96,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "attention_bias": True,
            "use_qk_norm": True,
            "n_routed_experts": 160,
            "moe_intermediate_size": 1536,
            "intermediate_size": 12288,
        },
    ),
    "GLM-4.5-Air": ("glm4_moe", {"attention_bias": True, "head_dim": 128}),
    "LongCat-Flash": ("longcat_flash", {}),
    "MiniMax-Text-01 (successor of abab6.5)": (
        "minimax",
        {
            "hidden_size": 6144,
            "num_hidden_layers": 80,
            "layer_types": 10 * (7 * ["linear_attention"] + ["full_attention"]),
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 200064,
            "num_local_experts": 32,
            "intermediate_size": 9216,
        },
    ),
}
# transformers 5.23 allocates gate and up matrices for LongCat's 256 identity experts too; nothing reads them.
UNREAD = {"LongCat-Flash": 28 * 256 * 2 * 2048 * 6144}

LLAMA: dict[str, tuple[Geometry, dict[str, Any]]] = {
    "Llama-2-7B": (LLAMA2_7B, {}),
    "DeepSeek-7B": (DEEPSEEK_7B, {"vocab_size": 102400, "num_hidden_layers": 30}),
    "Llama-3-70B": (
        LLAMA3_70B,
        {
            "vocab_size": 128256,
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
        },
    ),
}


def build(model_type: str, sizes: dict[str, Any]) -> hf.PreTrainedModel:
    config = hf.AutoConfig.for_model(model_type, **sizes)
    config._attn_implementation = "eager"  # plain products, which the counter sees with every position
    config._experts_implementation = "batched_mm"  # shapes that do not depend on the routing
    with torch.device("meta"):
        return hf.AutoModelForCausalLM.from_config(config).eval()


def stored(model: hf.PreTrainedModel) -> int:
    biases = (buffer for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias"))
    return sum(tensor.numel() for tensor in (*model.parameters(), *biases))


def flops_per_token(model: hf.PreTrainedModel, context: int) -> float:
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        ids, mask = torch.zeros(1, context, dtype=torch.long), torch.zeros(1, 1, context, context)
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    return counter.get_total_flops() / context


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter(name: str):
    system = find(name)
    assert isinstance(system, Model)
    assert system.geometry.total_params == stored(build(*CONFIGS[name])) - UNREAD.get(name, 0)


@pytest.mark.parametrize("name", LLAMA)
def test_every_parameter_of_the_dense_yardsticks(name: str):
    geometry, sizes = LLAMA[name]
    model = build("llama", sizes)
    assert geometry.total_params == stored(model)
    assert geometry.flops_per_token(64) == flops_per_token(model, 64)


@pytest.mark.parametrize("name", ["Mixtral-8x7B", "Qwen1.5-MoE-A2.7B", "DeepSeek-V3", "gpt-oss-120b", "OLMoE-1B-7B"])
def test_every_flop(name: str):
    system = find(name)
    assert isinstance(system, Model)
    assert system.geometry.flops_per_token(64) == flops_per_token(build(*CONFIGS[name]), 64)
