"""Where a model of transformers finds router logits: in what modules of certain classes return.

With `output_router_logits` a model records that, and takes its balance loss from it. A tap is of such a class, keeps
hooks that are there already, and returns our logits in the place of the block's.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gatelab.layers.moe import MoE
from gatelab.zoo.hf.blocks import router_of
from gatelab.zoo.hf.pair import Pair, evaluating
from gatelab.zoo.hf.plan import Plan

SHAPE = (2, 16)
BLOCK = "block"


@dataclass(frozen=True)
class Emit:
    """Returns logits (T, E) where a module returned its own, in the shape it did.

    Attributes:
        index: in the tuple it returned, or None where it returned the logits alone.
        dim: of the logits there.
    """

    index: int | None
    dim: int

    def __call__(self, logits_TE: Tensor, batch: torch.Size) -> Any:
        logits = logits_TE.view(*batch, -1) if self.dim > 2 else logits_TE
        return logits if self.index is None else (*[None] * self.index, logits)


def taps(block: nn.Module, moe: MoE, plan: Plan) -> dict[str, nn.Module]:
    """A tap for a block's router, under its own name (some models look for it), and one for the block itself.

    Found by running both: those whose output holds our raw logits.
    """
    name = router_of(block)
    candidates = {BLOCK: block} if name is None else {name: block.get_submodule(name), BLOCK: block}
    returned: dict[str, Any] = {}
    handles = [
        module.register_forward_hook(lambda _, __, output, key=key: returned.update({key: output}))
        for key, module in candidates.items()
    ]
    pair = Pair(block, moe, plan)
    try:
        with torch.no_grad(), evaluating(block, moe):
            x, theirs, ours = pair.batch(0, 1.0, SHAPE)
            pair.run_block(x, theirs)
            _, routing = pair.run_moe(x, ours)
    finally:
        for handle in handles:
            handle.remove()
    emits = {key: _emit(output, routing.router_logits) for key, output in returned.items()}
    return {key: _hollow(candidates[key], emit) for key, emit in emits.items() if emit is not None}


def _emit(returned: Any, logits_TE: Tensor) -> Emit | None:
    many = returned if isinstance(returned, tuple) else (returned,)
    for i, tensor in enumerate(many):
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel() == logits_TE.numel():
            close = 1e-4 if tensor.dtype.itemsize >= 4 else 1e-2
            if torch.allclose(tensor.reshape(logits_TE.shape).float(), logits_TE.float(), close, close):
                return Emit(i if isinstance(returned, tuple) else None, tensor.dim())
    return None


def _hollow(module: nn.Module, emit: Emit) -> nn.Module:
    """A module of the same class and hooks without tensors or children, that does nothing else."""
    tap = copy.copy(module)
    vars(tap).update(_parameters={}, _buffers={}, _modules={}, forward=emit)
    return tap
