"""Tiny random checkpoints with a byte-level tokenizer, as save_pretrained writes them, and a text or two."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

# Matrices this small gain nothing from threads, and lose much when the machine is busy.
torch.set_num_threads(1)

VOCABULARY = 320
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", {"num_local_experts": 6, "num_experts_per_tok": 2}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 24,
        },
    ),
    # The first layer is dense; sigmoid scores, a bias on the selection, groups, a shared expert.
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            "moe_intermediate_size": 16,
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
        },
    ),
    "longcat_flash": (
        "LongcatFlashConfig",
        {
            "num_layers": 1,
            "ffn_hidden_size": 24,
            "expert_ffn_hidden_size": 16,
            "n_routed_experts": 6,
            "zero_expert_num": 4,
            "moe_topk": 3,
            "head_dim": 8,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
    ),
    "llama": ("LlamaConfig", {}),
}
CODE = "def gate(tokens, experts):\n    return experts[tokens.argmax()]\n\n"
PROSE = "The gate sends every token to a few experts; nobody waits for the others. Ω ≠ ∅, it says.\n"


def save_checkpoint(folder: Path, model: str, *, bos: bool = False, **options: Any) -> Path:
    """Write a random model and its tokenizer.

    Args:
        folder: made here.
        model: of `MODELS`.
        bos: the tokenizer puts <s> before a text.
        **options: of `save_pretrained`.
    """
    name, extra = MODELS[model]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(getattr(transformers, name)(**{**SIZES, **extra}))
        for parameter_name, parameter in made.named_parameters():
            if parameter_name.endswith(("gate.weight", "router.classifier.weight")):
                parameter.data *= 20  # gates that mean it: scores apart, loads uneven
    made.save_pretrained(folder, **options)
    save_tokenizer(folder, bos=bos)
    return folder


def save_tokenizer(folder: Path, *, bos: bool = False) -> None:
    tokenizer = Tokenizer.from_str(_byte_level())
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(folder)


@functools.cache
def _byte_level() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    tokenizer.train_from_iterator([CODE * 5, PROSE * 5], trainer)
    return tokenizer.to_str()


def write_texts(folder: Path, repeat: int = 12) -> list[Path]:
    """code.txt and prose.txt."""
    paths = [folder / "code.txt", folder / "prose.txt"]
    for path, text in zip(paths, (CODE, PROSE), strict=True):
        path.write_text(text * repeat, encoding="utf-8")
    return paths
