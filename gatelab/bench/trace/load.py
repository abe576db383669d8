"""A checkpoint's tokenizer and model by transformers, from local files alone, whole or not at all."""

from __future__ import annotations

import contextlib
import logging
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gatelab.bench.errors import BadInput
from gatelab.bench.trace.config import TraceConfig

REMOTE = "needs Python code that lies in it; read that code, then pass --trust-remote-code to run it"


@contextlib.contextmanager
def quiet() -> Iterator[list[str]]:
    """Keep transformers from printing; what it would have warned of is collected."""
    from transformers.utils import logging as theirs

    said: list[str] = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: said.append(record.getMessage())
    logger, bar = theirs.get_logger(), theirs.is_progress_bar_enabled()
    handlers, propagate = logger.handlers[:], logger.propagate
    logger.handlers, logger.propagate = [listener], False
    theirs.disable_progress_bar()
    try:
        yield said
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        if bar:
            theirs.enable_progress_bar()


def load_tokenizer(model_dir: Path, config: TraceConfig) -> Any:
    """The tokenizer of a checkpoint.

    Raises:
        BadInput: it is broken, or needs code that is not allowed.
    """
    from transformers import AutoTokenizer

    return _attempt(model_dir, "tokenizer", config.trust_remote_code, AutoTokenizer.from_pretrained)


def load_model(model_dir: Path, config: TraceConfig, safe: bool) -> Any:
    """The model of a checkpoint in evaluation mode, every weight read from its files.

    Its class is the one the checkpoint says it was saved from, so that no head is missing or left over.

    Args:
        model_dir: looked through by `check_folder`.
        config: device, dtype, and whether code in the folder may run.
        safe: read safetensors, not pickle.

    Raises:
        BadInput: the architecture is unknown, code is needed that is not allowed, or the weights are not exactly those
            of the model.
    """
    from transformers import AutoConfig

    described = _attempt(model_dir, "configuration", config.trust_remote_code, AutoConfig.from_pretrained)
    with quiet() as said:
        try:
            model, info = _attempt(
                model_dir,
                "model",
                config.trust_remote_code,
                _class_of(described).from_pretrained,
                config=described,
                use_safetensors=True if safe else None,
                dtype=config.dtype if config.dtype == "auto" else getattr(torch, config.dtype),
                ignore_mismatched_sizes=True,  # they are refused below, by name
                output_loading_info=True,
            )
        except BadInput as error:
            broken = _unmerged(said)
            if broken:
                raise _refused(model_dir, "has tensors of experts that do not fit together in", broken) from error
            raise
    for kind, problem in (
        ("missing_keys", "lacks weights of"),
        ("mismatched_keys", "has another shape than its config.json says in"),
        ("unexpected_keys", "has weights that its config.json has no place for:"),
    ):
        names = [key if isinstance(key, str) else key[0] for key in info[kind]]
        if names:
            raise _refused(model_dir, problem, names)
    return model.to(config.device).eval()


def text_stack(model: Any) -> tuple[nn.Module, dict[str, Any]]:
    """What to run on token ids, and with which arguments: no head, whose logits nobody reads; of an encoder-decoder the
    encoder, since a text has no second half to decode."""
    if model.config.is_encoder_decoder:
        return model.get_encoder(), {}
    return model.base_model, {"use_cache": False}


def _class_of(described: Any) -> Any:
    import transformers

    auto = getattr(described, "auto_map", None) or {}
    name = next(iter(described.architectures or ()), "")
    if hasattr(transformers, name):
        return getattr(transformers, name)
    causal = type(described) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in auto
    return transformers.AutoModelForCausalLM if causal else transformers.AutoModel


def _attempt(model_dir: Path, what: str, trusted: bool, load: Callable[..., Any], **options: Any) -> Any:
    """Load, or say in one line why not: what the files hold decides which of a hundred errors transformers raises."""
    try:
        return load(model_dir, local_files_only=True, trust_remote_code=trusted, **options)
    except Exception as error:
        if "trust_remote_code" in str(error) and not trusted:
            raise BadInput(f"MODEL_DIR {model_dir} {REMOTE}") from error
        reason = textwrap.shorten(str(error), 240)
        raise BadInput(f"MODEL_DIR {model_dir}: its {what} does not load: {type(error).__name__}: {reason}") from error


def _unmerged(said: Iterable[str]) -> list[str]:
    """Experts whose tensors transformers could not stack, which it names in a table it logs and nowhere else."""
    lines = [line.split("|") for report in said for line in report.splitlines()]
    return [cells[0].strip() for cells in lines if len(cells) > 1 and cells[1].strip() == "CONVERSION"]


def _refused(model_dir: Path, problem: str, names: Iterable[str]) -> BadInput:
    first, *others = sorted(names)
    also = f" and {len(others)} more" if others else ""
    return BadInput(f"MODEL_DIR {model_dir} {problem} {first}{also}; it would not be the model that was trained")
