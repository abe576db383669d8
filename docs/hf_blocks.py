"""Writes the table in hugging-face.md: every MoE block of the installed transformers, converted or the reason why not.

python docs/hf_blocks.py

It takes half a minute. Tests use `block_classes`, `tiny_block` and `verdict` on their own.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig

from gatelab import MoE
from gatelab.zoo import UnsupportedBlock, from_hf
from gatelab.zoo.hf.host import hosted

PAGE = Path(__file__).with_name("hugging-face.md")
START, END = "<!-- blocks -->\n", "<!-- /blocks -->\n"

# Sizes of a block that says as much as a full one. `hidden_size` is twice the experts' width, so that a matrix and its
# transpose have the same shape and only what it computes tells them apart.
SMALL: dict[str, Any] = {
    "decoder_ffn_dim": 24,
    "d_ff": 24,
    "d_model": 32,
    "enable_moe_block": True,
    "encoder_ffn_dim": 24,
    "expert_capacity": 3,
    "expert_ffn_hidden_size": 16,
    "ffn_hidden_size": 24,
    "hidden_size": 32,
    "intermediate_size": 24,
    "moe_hidden_size": 20,
    "moe_intermediate_size": 16,
    "moe_k": 3,
    "moe_num_experts": 8,
    "moe_num_shared_experts": 1,
    "moe_shared_expert_intermediate_size": 40,
    "moe_top_k": 3,
    "moe_topk": 3,
    "n_group": 2,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 2,
    "num_local_experts": 8,
    "num_shared_experts": 1,
    "part_features": 8,
    "router_hidden_size": 16,
    "share_expert_dim": 40,
    "shared_expert_intermediate_size": 40,
    "shared_experts_intermediate_size": 40,
    "shared_intermediate_size": 40,
    "top_k_experts": 3,
    "topk_group": 1,
    "vocab_size": 64,
    "zero_expert_num": 4,
}
# Where a class needs more than its configuration's defaults.
EXTRA: dict[str, dict[str, Any]] = {
    "DogeCDMoE": {"num_experts": 16},  # a square number
    "Qwen3OmniMoeTalkerTextSparseMoeBlock": {"shared_expert_intermediate_size": 40},
    "Ernie4_5_VLMoeMoeBlock": {"moe_intermediate_size": [16, 16]},
}


@functools.cache
def block_classes() -> list[tuple[str, str]]:
    """(model, class) of every MoE block: a class that gives itself experts, a router, or two MoE layers.

    Read from the sources, so that a new release shows its new blocks.
    """
    return list(_block_classes())


def _block_classes() -> Iterator[tuple[str, str]]:
    models = Path(transformers.__file__).parent / "models"
    for file in sorted(models.glob("*/modeling_*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and {"experts", "router", "router_gate", "text_moe"} & _attributes(node):
                yield file.parent.name, node.name


def _attributes(node: ast.ClassDef) -> set[str]:
    """What `__init__` sets on self."""
    inits = [b for b in node.body if isinstance(b, ast.FunctionDef) and b.name == "__init__"]
    targets = (n for init in inits for n in ast.walk(init) if isinstance(n, ast.Attribute))
    stores = (n for n in targets if isinstance(n.ctx, ast.Store))
    return {n.attr for n in stores if isinstance(n.value, ast.Name) and n.value.id == "self"}


def tiny_block(model: str, name: str, seed: int = 0, **options: Any) -> nn.Module:
    """A block of that class, small, in evaluation mode, all of its parameters and buffers random.

    Args:
        model, name: as `block_classes` has them.
        seed: of the numbers.
        **options: of its configuration.
    """
    cls = getattr(importlib.import_module(f"transformers.models.{model}.modeling_{model}"), name)
    failures = []
    for make in _configs(model, cls):
        try:
            _shrink(config := make(), {**EXTRA.get(name, {}), **options})
            config._experts_implementation = "eager"
            known = {"config": config, "layer_idx": 1, "intermediate_size": 16, "ffn_dim": 16}
            arguments = list(inspect.signature(cls.__init__).parameters)[1:]
            return _randomise(cls(**{a: known[a] for a in arguments if a in known}).eval(), seed)
        except Exception as error:  # a configuration of another part of the model
            failures.append(f"{make.__name__}: {error}")
    raise RuntimeError(f"{name} cannot be made small: {failures}")


def _configs(model: str, cls: type) -> list[type[PreTrainedConfig]]:
    """Configuration classes of a model, those that the block's `__init__` names first."""
    module = importlib.import_module(f"transformers.models.{model}.configuration_{model}")
    own = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
    named = " ".join(str(p.annotation) for p in inspect.signature(cls.__init__).parameters.values())
    return sorted((c for c in own if issubclass(c, PreTrainedConfig)), key=lambda c: c.__name__ not in named)


def _shrink(config: PreTrainedConfig, extra: dict[str, Any]) -> None:
    config.allow_global_per_layer_attribute_access = True
    for name, value in SMALL.items():
        if hasattr(config, name):
            old = getattr(config, name)
            setattr(config, name, [value] * len(old) if isinstance(old, list) else value)
    for name, value in extra.items():
        setattr(config, name, value)
    for inner in list(vars(config).values()):
        if isinstance(inner, PreTrainedConfig):
            _shrink(inner, extra)


def _randomise(block: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in block.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            tensor.data = 0.2 * torch.randn(tensor.shape, generator=generator)
        elif name.endswith("tid2eid"):  # distinct experts for every token id
            rows = [torch.randperm(8, generator=generator)[: tensor.shape[1]] for _ in range(tensor.shape[0])]
            tensor.data = torch.stack(rows)
    return block


def verdict(model: str, name: str) -> tuple[str, str]:
    """("yes", recipe); ("in place", recipe) where a layer's own router and experts are replaced; or ("no", reason)."""
    block = tiny_block(model, name)
    try:
        moe = from_hf(block)
    except UnsupportedBlock as error:
        return "no", str(error).partition("cannot be converted: ")[2]
    if isinstance(moe, MoE):
        return "yes", recipe(moe)
    return "in place", "; ".join(recipe(inner) for inner in hosted(moe).values())


def recipe(moe: MoE) -> str:
    """The parts of a gate and its experts, in one line."""
    router = moe.router
    parts = [router.score, router.select, *router.weight.parts, *router.balance]
    names = [f"{type(part).__name__}({text})" if (text := _number(part)) else type(part).__name__ for part in parts]
    names.insert(1, getattr(router.activation, "__name__", str(router.activation)))
    if router.select_on == "logits" and router.activation.__name__ != "none":
        names[2] += " on logits"
    experts: Any = moe.experts
    while not hasattr(experts, "activation"):
        experts = experts.experts
    extra = [f"{len(router.zero_computation)} {router.zero_computation[0]} experts"] if router.zero_computation else []
    extra += ["weights on input"] if router.weights_on_input else []
    extra += [type(moe.experts).__name__] if type(moe.experts).__name__ != "Experts" else []
    extra += ["shared"] if moe.shared is not None else []
    return " · ".join([*names, _activation(experts.activation), *extra])


def _number(part: nn.Module) -> str:
    for name in ("factor", "p", "capacity", "minimum"):
        if isinstance(value := getattr(part, name, None), int | float):
            return f"{value:g}"
    return ""


def _activation(activation: Any) -> str:
    return activation if isinstance(activation, str) else repr(activation).partition("(")[0]


def table() -> str:
    """The rows, and the counts above them."""
    rows = [(model, name, *verdict(model, name)) for model, name in block_classes()]
    counts = {kind: sum(row[2] == kind for row in rows) for kind in ("yes", "in place", "no")}
    lines = [
        f"transformers {transformers.__version__} has {len(rows)} such classes: {counts['yes']} are converted, "
        f"{counts['in place']} where they stand, {counts['no']} are not.\n\n",
        "| model | class | | gate · experts, or the reason |\n| --- | --- | --- | --- |\n",
        *(f"| {model} | `{name}` | {kind} | {text} |\n" for model, name, kind, text in rows),
    ]
    return "".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    PAGE.write_text(before + START + table() + END + rest.split(END)[1], encoding="utf-8")
