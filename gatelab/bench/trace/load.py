"""A checkpoint's tokenizer and model by transformers, from local files alone, whole or not at all."""

from __future__ import annotations

import contextlib
import logging
import textwrap
from collections.abc import Iterable, Iterator
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
    handlers, propagate, level = logger.handlers[:], logger.propagate, logger.level
    logger.handlers, logger.propagate = [listener], False
    logger.setLevel(logging.WARNING)  # somebody may have asked it for errors alone
    theirs.disable_progress_bar()
    try:
        yield said
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
        if bar:
            theirs.enable_progress_bar()


def load_tokenizer(model_dir: Path, config: TraceConfig) -> Any:
    """The tokenizer of a checkpoint.

    Raises:
        BadInput: it is broken, or needs code that is not allowed.
    """
    from transformers import AutoTokenizer

    with _saying_why(model_dir, "its tokenizer does not load"):
        return AutoTokenizer.from_pretrained(model_dir, **_local(config))


def load_model(model_dir: Path, config: TraceConfig, safe: bool) -> Any:
    """The model of a checkpoint in evaluation mode, every weight read from its files.

    Its class is the one the checkpoint says it was saved from, so that no head is missing or left over.

    Args:
        model_dir: looked through by `check_folder`.
        config: device, dtype, and whether code in the folder may run.
        safe: read safetensors, not pickle.

    Raises:
        BadInput: the architecture is unknown, code is needed that is not allowed, the weights are not exactly those of
            the model, or they have no room on the device.
    """
    from transformers import AutoConfig

    with _saying_why(model_dir, "its configuration does not load"):
        described = AutoConfig.from_pretrained(model_dir, **_local(config))
    with quiet() as said:
        try:
            with _saying_why(model_dir, "its model does not load"):
                model, info = _class_of(described).from_pretrained(
                    model_dir,
                    config=described,
                    use_safetensors=True if safe else None,
                    dtype=config.dtype if config.dtype == "auto" else getattr(torch, config.dtype),
                    ignore_mismatched_sizes=True,  # they are refused below, by name
                    output_loading_info=True,
                    **_local(config),
                )
        except BadInput as error:
            if broken := _unmerged(said):
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
    with _saying_why(model_dir, f"its model does not go to --device {config.device}"):
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
    named = getattr(transformers, next(iter(described.architectures or ()), ""), None)
    if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
        return named
    causal = type(described) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in auto
    return transformers.AutoModelForCausalLM if causal else transformers.AutoModel


def _local(config: TraceConfig) -> dict[str, bool]:
    return {"local_files_only": True, "trust_remote_code": config.trust_remote_code}


@contextlib.contextmanager
def _saying_why(model_dir: Path, what: str) -> Iterator[None]:
    """Turn any of the hundred errors that files can make transformers raise into one line."""
    try:
        yield
    except Exception as error:
        if "trust_remote_code=True" in str(error):
            raise BadInput(f"MODEL_DIR {model_dir} {REMOTE}") from error
        reason = textwrap.shorten(str(error), 240)
        raise BadInput(f"MODEL_DIR {model_dir}: {what}: {type(error).__name__}: {reason}") from error


def _unmerged(said: Iterable[str]) -> list[str]:
    """Experts whose tensors transformers could not stack, which it names in a table it logs and nowhere else."""
    lines = [line.split("|") for report in said for line in report.splitlines()]
    return [cells[0].strip() for cells in lines if len(cells) > 1 and cells[1].strip() == "CONVERSION"]


def _refused(model_dir: Path, problem: str, names: Iterable[str]) -> BadInput:
    first, *others = sorted(names)
    also = f" and {len(others)} more" if others else ""
    return BadInput(f"MODEL_DIR {model_dir} {problem} {first}{also}; it would not be the model that was trained")
