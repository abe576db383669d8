"""The trace: a checkpoint, some texts, and what every gate of the one does with the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gatelab.bench import files
from gatelab.bench.errors import BadInput
from gatelab.bench.machine import machine
from gatelab.bench.seeding import seeded
from gatelab.bench.trace.config import TraceConfig, check_out, check_texts
from gatelab.bench.trace.convert import Layer, convert_blocks
from gatelab.bench.trace.folder import check_folder
from gatelab.bench.trace.layer import LayerCounts
from gatelab.bench.trace.load import load_model, load_tokenizer, quiet
from gatelab.bench.trace.recording import Recording
from gatelab.bench.trace.results import layer_figures
from gatelab.bench.trace.text import Reader, Text, added
from gatelab.bench.trace.vocabulary import Vocabulary
from gatelab.bench.trace.windows import check_fits, run_windows

DEVICES = 8
OnProgress = Callable[[str, int, int], None]


def run(
    model_dir: str | PathLike[str],
    texts: Sequence[str | PathLike[str]],
    out_dir: str | PathLike[str],
    *,
    on_progress: OnProgress = lambda phase, done, total: None,
    **options: Any,
) -> dict[str, Any]:
    """Route texts through a local Hugging Face MoE checkpoint; write trace.json, trace.html, counts.npz and routing/.

        results = gatelab.bench.trace.run("mixtral", ["code.py", "novel.txt"], "runs/trace", tokens=20_000)

    Args:
        model_dir: a `save_pretrained` folder with its tokenizer.
        texts: UTF-8 files; with several, each is a domain.
        out_dir: made where it is missing; an earlier trace in it is replaced.
        on_progress: hears a phase, how much of it is done and of how much.
        **options: attributes of `TraceConfig`.

    Returns:
        What trace.json holds (docs/trace.md).

    Raises:
        BadInput: something asked for cannot be; the message names it.
        CannotWrite: the disk is full or the like.
    """
    from gatelab.bench.trace.report import write_page

    model_dir, out_dir, paths = Path(model_dir), Path(out_dir), [Path(text) for text in texts]
    config = TraceConfig(**options)
    names = check_texts(paths)
    if find_spec("transformers") is None:
        raise BadInput("a trace needs transformers, which is not installed; pip install 'gatelab[hf]'")
    safe = check_folder(model_dir, config.allow_pickle)
    with quiet(), seeded("trace", config.seed), torch.no_grad():
        reader = Reader(load_tokenizer(model_dir, config), config)
        read, frequency = _look_through(reader, paths, names, on_progress)
        check_out(out_dir)
        on_progress("loading the model", 0, 1)
        model = load_model(model_dir, config, safe)
        check_fits(model, model_dir, config, len(frequency))
        layers, left_out = convert_blocks(model, lambda done, total: on_progress("converting layers", done, total))
        vocabulary = Vocabulary(reader.tokenizer, frequency)
        counts = _empty_counts(config, layers, len(read), len(vocabulary))
        with files.writing("pass another --out"):
            recording = Recording(out_dir, config.record)
            run_windows(model, layers, read, reader, vocabulary, counts, recording, on_progress)
            recorded = recording.close()
    reached = [layer for layer in layers if counts[layer.name].windows]
    left_out |= {layer.name: "no token reached it" for layer in layers if layer not in reached}
    if not reached:
        raise BadInput(f"MODEL_DIR {model_dir}: no token of the text reached any of its MoE layers")
    results = {
        "kind": "trace",
        "schema": files.SCHEMA,
        **_provenance(model, model_dir, config),
        "prefix": reader.prefix,
        "texts": [{"name": text.name, "tokens": text.num_tokens, "unknown": text.unknown} for text in read],
        "vocabulary": vocabulary.figures(),
        "layers": [layer_figures(layer, counts[layer.name], vocabulary.shown) for layer in reached],
        "left_out": left_out,
        "recording": recorded,
    }
    _write_counts(out_dir, vocabulary.ids_V, counts)
    files.write_json(out_dir / "trace.json", results)
    write_page(results, out_dir)
    return results


def _look_through(
    reader: Reader, paths: Iterable[Path], names: Iterable[str], on_progress: OnProgress
) -> tuple[list[Text], Tensor]:
    """The texts, and how often each token id occurs in all of them."""
    read, frequency = [], torch.zeros(0, dtype=torch.int64)
    for path, name in zip(paths, names, strict=True):
        text, counts = reader.look_through(
            path, name, lambda done, name=name: on_progress(f"reading {name}", done, reader.config.tokens)
        )
        read.append(text)
        frequency = added(frequency, counts)
    return read, frequency


def _empty_counts(config: TraceConfig, layers: Iterable[Layer], num_texts: int, num_ids: int) -> dict[str, LayerCounts]:
    """By layer, once it is clear that `devices` fits every one."""
    return {
        layer.name: LayerCounts(
            layer.num_experts, layer.num_columns, num_texts, num_ids, _devices(config, layer.num_experts)
        )
        for layer in layers
    }


def _devices(config: TraceConfig, num_experts: int) -> int:
    if config.devices is None:
        return default_devices(num_experts)
    if num_experts % config.devices:
        raise BadInput(f"--devices {config.devices} must divide the {num_experts} experts of a layer")
    return config.devices


def default_devices(num_experts: int) -> int:
    """The largest divisor up to 8."""
    return max(devices for devices in range(1, DEVICES + 1) if num_experts % devices == 0)


def _provenance(model: Any, model_dir: Path, config: TraceConfig) -> dict[str, Any]:
    import transformers

    from gatelab import __version__

    return {
        "gatelab": __version__,
        "machine": {**machine(config.device), "transformers": transformers.__version__},
        "config": dataclasses.asdict(config),
        "model": {
            "name": model_dir.resolve().name,
            "class": type(model).__name__,
            "model_type": model.config.model_type,
            "dtype": str(model.dtype).removeprefix("torch."),
            "parameters": sum(p.numel() for p in model.parameters()),
        },
    }


def _write_counts(out_dir: Path, ids_V: Tensor, counts: dict[str, LayerCounts]) -> None:
    """What is too large for JSON."""
    arrays: dict[str, Any] = {"token_ids": ids_V.numpy()}
    for name, layer in counts.items():
        arrays[f"{name}/co_activation"] = layer.pairs_EE.numpy()
        arrays[f"{name}/tokens"] = layer.tokens_V.numpy()
        arrays[f"{name}/assignments"] = layer.all_VE.numpy()
        arrays[f"{name}/first_choices"] = layer.first_VE.numpy()
    files.write(out_dir / "counts.npz", lambda file: np.savez_compressed(file, **arrays))
