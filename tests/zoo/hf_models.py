"""Tiny causal models of transformers, random, in evaluation mode."""

from typing import Any

import torch
import transformers
from torch import nn

transformers.logging.set_verbosity_error()  # advice about kernels and image processors that are not installed

COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 24,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OWN: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2, "tie_word_embeddings": True},
    "qwen2_moe": {"num_experts": 8, "num_experts_per_tok": 3, "shared_expert_intermediate_size": 40},
    "gpt_oss": {"num_local_experts": 8, "num_experts_per_tok": 3},
    "llama4_text": {"num_local_experts": 8, "num_experts_per_tok": 1, "intermediate_size_mlp": 24},
    "deepseek_v3": {
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
    },
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 64,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 8, "moe_top_k": 3, "hidden_size": 32},
    },
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 3},
    "granitemoe": {"num_local_experts": 8, "num_experts_per_tok": 3},
    "jetmoe": {"num_local_experts": 8, "num_experts_per_tok": 2, "kv_channels": 8},
    "zaya": {"num_experts": 8, "num_experts_per_tok": 1},
    "doge": {"num_experts": 16, "num_experts_per_tok": 3, "is_moe": True},
    "inkling_text": {
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 8,
    },
    "gemma4_text": {
        "num_experts": 8,
        "top_k_experts": 3,
        "enable_moe_block": True,
        "hidden_size_per_layer_input": 0,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}


def tiny_model(kind: str, seed: int = 0, **options: Any) -> nn.Module:
    """A two-layer model of that `model_type`; matrices five times their usual size, so that its experts matter."""
    config = transformers.AutoConfig.for_model(kind, **{**COMMON, **OWN[kind], **options})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return model


def token_ids(seed: int = 1, shape: tuple[int, int] = (2, 12)) -> torch.Tensor:
    """(B, S) ids past the special ones."""
    return torch.randint(3, 64, shape, generator=torch.Generator().manual_seed(seed))
