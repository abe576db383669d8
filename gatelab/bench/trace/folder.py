"""Whether a folder holds a whole checkpoint: looked at before anything is loaded, which may take minutes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gatelab.bench.errors import BadInput

SAFE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
TOKENIZERS = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "tekken.json")


def check_folder(model_dir: Path, allow_pickle: bool) -> bool:
    """Look at a folder's files.

    Returns:
        Whether its weights are safetensors.

    Raises:
        BadInput: it is no whole checkpoint with a tokenizer, or has only pickled weights, which are not allowed.
    """
    if not model_dir.is_dir():
        what = "is a file" if model_dir.exists() else "does not exist"
        raise BadInput(f"MODEL_DIR {model_dir} {what}; name a local folder as save_pretrained writes it")
    if (model_dir / "adapter_config.json").exists():
        raise BadInput(f"MODEL_DIR {model_dir} is an adapter; merge it into its model and save that")
    if not (model_dir / "config.json").exists():
        raise BadInput(f"MODEL_DIR {model_dir} has no config.json; name a folder as save_pretrained writes it")
    if "transformers_weights" in _json(model_dir / "config.json"):
        raise BadInput(f"{model_dir / 'config.json'} renames its weights (transformers_weights); name them {SAFE}")
    if not any(path for pattern in TOKENIZERS for path in model_dir.glob(pattern)):
        raise BadInput(f"MODEL_DIR {model_dir} has no tokenizer; add it: tokenizer.save_pretrained({str(model_dir)!r})")
    return _check_weights(model_dir, allow_pickle)


def _check_weights(model_dir: Path, allow_pickle: bool) -> bool:
    if (model_dir / SAFE).exists():
        _check_header(model_dir / SAFE, [])
        return True
    if (model_dir / SAFE_INDEX).exists():
        for shard, names in _shards(model_dir, SAFE_INDEX).items():
            _check_header(model_dir / shard, names)
        return True
    pickled = [name for name in (PICKLED, PICKLED_INDEX) if (model_dir / name).exists()]
    if not pickled:
        raise BadInput(f"MODEL_DIR {model_dir} has no weights: neither {SAFE} nor {SAFE_INDEX}")
    if not allow_pickle:
        raise BadInput(
            f"MODEL_DIR {model_dir} has its weights only as pickle ({pickled[0]}), which can run code when read; "
            "convert it to safetensors, or pass --allow-pickle"
        )
    if pickled[0] == PICKLED_INDEX:
        _shards(model_dir, PICKLED_INDEX)
    return False


def _shards(model_dir: Path, index: str) -> dict[str, list[str]]:
    """Tensor names by shard."""
    weight_map = _json(model_dir / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInput(f"{model_dir / index} has no weight_map; download it again")
    shards: dict[str, list[str]] = {}
    for name, shard in weight_map.items():
        shards.setdefault(shard, []).append(name)
    missing = sorted(shard for shard in shards if not (model_dir / shard).exists())
    if missing:
        also = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BadInput(f"MODEL_DIR {model_dir} lacks {missing[0]}{also}, of {len(shards)} shards; download it again")
    return shards


def _check_header(path: Path, names: list[str]) -> None:
    """Raise BadInput if a safetensors file is not whole or lacks a tensor that the index says it has."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            missing = sorted(set(names) - set(file.keys()))
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path} is truncated or no safetensors file ({error}); download it again") from error
    if missing:
        raise BadInput(f"{path} lacks {missing[0]}, which the index says it holds; download it again")


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise BadInput(f"{path} is truncated or not JSON; download it again")
    return value
