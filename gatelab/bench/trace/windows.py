"""Running the texts through the model, window by window, and hearing what its gates do."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gatelab.bench.errors import BadInput
from gatelab.bench.trace.config import TraceConfig
from gatelab.bench.trace.convert import Layer
from gatelab.bench.trace.layer import LayerCounts
from gatelab.bench.trace.load import text_stack
from gatelab.bench.trace.recording import Recording
from gatelab.bench.trace.text import Reader, Text
from gatelab.bench.trace.vocabulary import Vocabulary
from gatelab.routers.routing import Routing


def check_fits(model: Any, model_dir: Path, config: TraceConfig, num_ids: int) -> None:
    """Raise BadInput if the texts' ids, or their windows, are more than a model was made for."""
    rows = model.get_input_embeddings().weight.shape[0]
    if num_ids > rows:
        raise BadInput(
            f"MODEL_DIR {model_dir}: its tokenizer gives token id {num_ids - 1}, its model knows {rows}; "
            "they do not belong together"
        )
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(positions, int) and 0 < positions < config.sequence_length:
        raise BadInput(f"--sequence-length {config.sequence_length} is more than the model's {positions} positions")


def run_windows(
    model: Any,
    layers: Sequence[Layer],
    texts: Sequence[Text],
    reader: Reader,
    vocabulary: Vocabulary,
    counts: Mapping[str, LayerCounts],
    recording: Recording,
    on_progress: Callable[[str, int, int], None],
) -> None:
    """Route every text, count, and record the first windows of each; a window's routing is let go before the next.

    Raises:
        BadInput: the model fails, logits are not finite, a layer sees no whole window, or the device has no room.
    """
    stack, options = text_stack(model)
    prefix, device = reader.prefix, next(model.parameters()).device
    done, total = 0, sum(text.num_tokens for text in texts)
    for number, text in enumerate(texts):
        start = 0
        for window in reader.windows(text.path):
            ids = torch.tensor([prefix + window])
            with _listening(layers) as heard:
                _forward(stack, ids.to(device), options, text)
            for name, routing in heard.items():
                if routing.num_tokens != ids.numel() or not bool(routing.router_logits.isfinite().all()):
                    what = (
                        "has logits that are not finite" if routing.num_tokens == ids.numel() else "sees other tokens"
                    )
                    raise BadInput(f"{name} {what} in a window of {text.name}; its gate cannot be traced")
                counts[name].add(routing, number, vocabulary.labels(len(prefix), window))
            recording.add(text, start, ids, heard)
            start, done = start + len(window), done + len(window)
            on_progress(f"routing {text.name}", done, total)


@contextlib.contextmanager
def _listening(layers: Sequence[Layer]) -> Iterator[dict[str, Routing]]:
    """The Routing of every layer that runs inside the block."""
    heard: dict[str, Routing] = {}

    def hear(name: str) -> Callable[..., None]:
        def hook(router: Any, args: Any, routing: Routing) -> None:
            if name in heard:
                raise BadInput(f"{name} runs more than once in a forward; its gate cannot be traced")
            heard[name] = routing

        return hook

    handles = [layer.moe.router.register_forward_hook(hear(layer.name)) for layer in layers]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def _forward(stack: Any, ids: torch.Tensor, options: dict[str, Any], text: Text) -> None:
    try:
        stack(input_ids=ids, **options)
    except torch.OutOfMemoryError as error:
        raise BadInput(
            f"--device {ids.device} has no room for a window of {ids.numel()} tokens; "
            "pass a smaller --sequence-length or --dtype bfloat16"
        ) from error
    except BadInput:
        raise
    except Exception as error:  # a gate met NaN, or a configuration does not fit its own model's code
        reason = textwrap.shorten(str(error), 240)
        raise BadInput(f"MODEL_DIR: its model fails on {text.name}: {type(error).__name__}: {reason}") from error
