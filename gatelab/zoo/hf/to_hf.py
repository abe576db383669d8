"""`to_hf`: the numbers of a converted layer back into a block."""

from __future__ import annotations

import torch
from torch import nn

from gatelab.layers.moe import MoE
from gatelab.routers.router import Router
from gatelab.zoo.hf.blocks import find_blocks, is_block
from gatelab.zoo.hf.host import hosted
from gatelab.zoo.hf.links import tensors, write
from gatelab.zoo.hf.pair import evaluating
from gatelab.zoo.hf.precision import Rounded, RoundedSelect
from gatelab.zoo.hf.read import read


def to_hf(moe: nn.Module, block: nn.Module) -> nn.Module:
    """Write weights back: the inverse of `from_hf`, after training or any other change of numbers.

    Args:
        moe: what `from_hf` made of such a block, or of a whole model.
        block: receives the numbers, in its own dtype and layout: a block, or a model of the same shape.

    Returns:
        `block`.

    Raises:
        UnsupportedBlock: the block is not one that `from_hf` converts.
        ValueError: the layer has another gate or other tensors than one made of this block: its router was swapped, or
            sizes differ.
    """
    if is_block(block):
        _write(moe, block, type(block).__name__)
        return block
    converted, blocks = hosted(moe), find_blocks(block)
    missing = converted.keys() - blocks.keys()
    if missing or not converted:
        what = f"{min(missing)} of the converted model is no block in the other" if missing else "moe was not converted"
        raise ValueError(f"{what}; pass the result of from_hf and a model of the same shape")
    for name, layer in converted.items():
        _write(layer, blocks[name], name)
    # What is not a block's is shared by name.
    theirs = tensors(block)
    with torch.no_grad():
        for name, tensor in tensors(moe).items():
            if name in theirs:
                theirs[name].copy_(tensor)
    return block


def _write(moe: nn.Module, block: nn.Module, name: str) -> None:
    with torch.random.fork_rng(devices=[]), evaluating(block):
        plan = read(block)
    if not isinstance(moe, MoE):
        raise ValueError(f"moe is a {type(moe).__name__}; pass what from_hf made of such a block, a gatelab.MoE")
    gates = [_names(m.router) for m in (moe, plan.moe)]
    if gates[0] != gates[1]:
        raise ValueError(
            f"the gate of moe is {gates[0]}, that of {name} {gates[1]}; "
            "to_hf takes back only what from_hf made of such a block"
        )
    ours, wanted = ({n: tuple(t.shape) for n, t in tensors(m).items()} for m in (moe, plan.moe))
    if ours != wanted:
        differing = min(n for n in ours.keys() | wanted.keys() if ours.get(n) != wanted.get(n))
        raise ValueError(
            f"{differing} is {ours.get(differing, 'missing')} in moe, {wanted.get(differing, 'nowhere')} in {name}; "
            "to_hf takes back only what from_hf made of such a block"
        )
    write(moe, block, plan.links)


def _names(router: Router) -> str:
    """What makes a gate choose; its balance acts in training alone, unless it has tensors, which are compared."""
    activation, select = router.activation, router.select
    activation = activation.activation if isinstance(activation, Rounded) else activation
    select = select.select if isinstance(select, RoundedSelect) else select
    parts = (router.score, activation, select, *router.weight.parts)
    return " · ".join(getattr(part, "__name__", type(part).__name__) for part in parts)
