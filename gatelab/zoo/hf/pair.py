"""A block and what it was converted to, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from gatelab.layers.moe import MoE
from gatelab.routers.routing import Routing
from gatelab.zoo.hf.errors import running
from gatelab.zoo.hf.links import dtype_of, holding, tensors
from gatelab.zoo.hf.plan import Plan


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards the mode that each of their modules was in."""
    modes = [(inner, inner.training) for module in modules for inner in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@dataclass(frozen=True)
class Pair:
    """A block and what it was converted to, perhaps with other numbers in both: by name in each."""

    block: nn.Module
    moe: MoE
    plan: Plan
    theirs: dict[str, Tensor] = field(default_factory=dict)
    ours: dict[str, Tensor] = field(default_factory=dict)

    def with_other_gates(self, seed: int) -> Pair:
        """Random numbers in the gate, so that the proof does not hang on the experts that its own happen to choose."""
        generator, named = torch.Generator().manual_seed(seed), tensors(self.block)
        links = [link for link in self.plan.links if link.ours.startswith("router.")]
        theirs = {}
        for name in dict.fromkeys(name for link in links for name in link.theirs):
            old = named[name]
            if old.is_floating_point():
                new = torch.randn(old.shape, generator=generator) * (0.5 if old.dim() > 1 else 0.05)
                theirs[name] = new.to(old.device, old.dtype)
        together = {**named, **theirs}
        return replace(self, theirs=theirs, ours={link.ours: link.pull(together) for link in links})

    def batch(self, seed: int, scale: float, shape: tuple[int, int]) -> tuple[Tensor, dict[str, Any], dict[str, Any]]:
        """(B, S, D) hidden states, and what else the block wants, for it and for us."""
        generator, device = torch.Generator().manual_seed(seed), next(self.block.parameters()).device
        x = (torch.randn(*shape, self.plan.x.shape[-1], generator=generator) * scale).to(device, dtype_of(self.block))
        if self.plan.previous is not None:
            before = x.flip(0)  # of the layer before, which had none before it
            return x, {self.plan.previous: self.run_block(before, {})[1]}, {"previous": self.run_moe(before, {})[1]}
        if self.plan.token_ids is None:
            return x, {}, {}
        ids = torch.randint(self.plan.vocabulary, shape, generator=generator).to(device)
        return x, {self.plan.token_ids: ids}, {"token_ids": ids}

    def run_block(self, x: Tensor, kwargs: dict[str, Any], **changed: Tensor) -> Any:
        with holding(self.block, {**self.theirs, **changed}), running():
            return self.block(x.clone(), **kwargs)

    def run_moe(self, x: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, Routing]:
        with holding(self.moe, self.ours):
            return self.moe(x, **kwargs)
