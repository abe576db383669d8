"""`swap_router`: another gate in a Hugging Face model, over the experts it has."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import nn

from gatelab.layers.moe import MoE
from gatelab.routers.registry import create_router, find_recipe
from gatelab.routers.router import Router
from gatelab.zoo.hf.blocks import find_blocks
from gatelab.zoo.hf.convert import from_hf
from gatelab.zoo.hf.host import hosted
from gatelab.zoo.hf.links import tensors
from gatelab.zoo.hf.pair import evaluating

Init = Literal["keep", "new"]


def swap_router(model: nn.Module, name: str, *, init: Init = "keep", **options: Any) -> nn.Module:
    """Put another gate into every MoE layer of a model and keep the experts.

        model = gatelab.zoo.swap_router(AutoModelForCausalLM.from_pretrained(path), "balanced-assignment", init="keep")

    Blocks of transformers are converted first (`from_hf`). Experts per token stay what they were unless the recipe or
    `top_k` settles them.

    Args:
        model: a Hugging Face model, converted or not; or a `MoE`. Changed in place.
        name: a gate, as for `gatelab.create_router`.
        init: `keep` copies what the old gate has under the same name and shape (the rows of a linear score, a selection
            bias); `new` starts afresh.
        **options: of the recipe.

    Returns:
        `model`.

    Raises:
        UnsupportedBlock: a block cannot be converted.
        ValueError: unknown gate or option; `keep` finds nothing to keep; the gate has another number of columns than
            there are experts; or it reads what a model of transformers does not hand to its layers (token ids, labels).
            The gates are then the old ones, in a model that may have been converted.
    """
    if init not in get_args(Init):
        raise ValueError(f"init={init!r} is unknown; choose 'keep' or 'new'")
    find_recipe(name)
    if not isinstance(model, MoE) and find_blocks(model):
        from_hf(model)
    layers = {"": model} if isinstance(model, MoE) else hosted(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no MoE layer; pass a Hugging Face MoE model or a gatelab.MoE")
    routers = {place: _router(moe, name, init, options) for place, moe in layers.items()}
    if not isinstance(model, MoE):
        for router in routers.values():
            _try(router, name)
    for place, moe in layers.items():
        moe.router = routers[place]
    return model


def _router(moe: MoE, name: str, init: Init, options: dict[str, Any]) -> Router:
    old = moe.router
    weight = next((p for p in old.parameters()), next(moe.parameters()))
    options = dict(options)
    if "top_k" not in options and find_recipe(name).top_k == "free":
        options["top_k"] = getattr(old.select, "k", None)
    D = old.hidden_size
    if D is None:
        raise ValueError("the old router does not know its hidden size; make the new one with gatelab.create_router")
    new = create_router(name, D, old.num_experts, device=weight.device, dtype=weight.dtype, **options)
    if new.num_experts != old.num_experts:
        raise ValueError(f"{name} has {new.num_experts} columns for {old.num_experts} experts; swap in another gate")
    new.zero_computation = old.zero_computation
    new.gate_dtype = old.gate_dtype
    if init == "keep":
        _keep(old, new, name)
    return new.train(old.training)


def _keep(old: Router, new: Router, name: str) -> None:
    theirs = tensors(old)
    kept = {n: theirs[n] for n, t in tensors(new).items() if n in theirs and theirs[n].shape == t.shape}
    if not any(n.startswith("score.") for n in kept):
        raise ValueError(f"init='keep': the score of {name!r} shares no tensor with the old one; pass init='new'")
    with torch.no_grad():
        for n, tensor in kept.items():
            tensors(new)[n].copy_(tensor)


def _try(router: Router, name: str) -> None:
    """Raise ValueError if a gate does not route by hidden states alone, which is all that a hosted layer gives it."""
    parameter = next(router.parameters(), torch.empty(0))
    x = torch.zeros(1, 2, router.hidden_size or 1, device=parameter.device, dtype=parameter.dtype)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), evaluating(router):
            router(x)
    except ValueError as error:
        raise ValueError(f"{name} does not route by hidden states alone: {error}") from error
