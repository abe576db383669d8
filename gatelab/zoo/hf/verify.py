"""Proof that a converted block does what it did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gatelab.layers.moe import MoE
from gatelab.routers.routing import Routing
from gatelab.zoo.hf.blocks import EXPERTS
from gatelab.zoo.hf.capture import expert_call
from gatelab.zoo.hf.errors import UnsupportedBlock
from gatelab.zoo.hf.gate import marks
from gatelab.zoo.hf.links import tensors
from gatelab.zoo.hf.plan import Plan, first

SCALES = (0.1, 1.0, 10.0)
BATCHES_PER_SCALE = 2
# Of the largest entry of the output. Half precision rounds every product, so there it only tells formulas apart.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
SHAPE = (2, 16)


@dataclass(frozen=True)
class Difference:
    """Between a block and ours: of outputs, over what is allowed; and the share of tokens with other experts."""

    output: float
    experts: float


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
        return Pair(self.block, self.moe, self.plan, theirs, {link.ours: link.pull(together) for link in links})

    def batch(self, seed: int, scale: float) -> tuple[Tensor, dict[str, Any], dict[str, Any]]:
        """(B, S, D) hidden states, and what else the block wants, for it and for us."""
        generator, device = torch.Generator().manual_seed(seed), next(self.block.parameters()).device
        x = (torch.randn(*SHAPE, self.plan.x.shape[-1], generator=generator) * scale).to(device, dtype_of(self.block))
        if self.plan.previous is not None:
            before = x.flip(0)  # of the layer before, which had none before it
            return x, {self.plan.previous: self.run_block(before, {})[1]}, {"previous": self.run_moe(before, {})[1]}
        if self.plan.token_ids is None:
            return x, {}, {}
        ids = torch.randint(self.plan.vocabulary, SHAPE, generator=generator).to(device)
        return x, {self.plan.token_ids: ids}, {"token_ids": ids}

    def run_block(self, x: Tensor, kwargs: dict[str, Any], **changed: Tensor) -> Any:
        return functional_call(self.block, {**self.theirs, **changed}, (x.clone(),), kwargs)

    def run_moe(self, x: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, Routing]:
        return functional_call(self.moe, self.ours, (x,), kwargs)


def verify(block: nn.Module, moe: MoE, plan: Plan) -> Difference:
    """Run both in evaluation mode on random batches at scales 0.1, 1 and 10 and compare.

    Returns:
        The largest differences.

    Raises:
        UnsupportedBlock: an output differs, a token has other experts, or a tensor without a place in the conversion
            changes the output.
    """
    modes = [(module, module.training) for module in (*block.modules(), *moe.modules())]
    block.eval()
    moe.eval()
    pair = Pair(block, moe, plan)
    try:
        with torch.no_grad():
            found = [_difference(pair, i, scale) for i, scale in enumerate(SCALES * BATCHES_PER_SCALE)]
            found += [_difference(pair.with_other_gates(seed), seed, 1.0) for seed in range(2)]
            _check_rest(pair)
    finally:
        for module, training in modes:
            module.training = training
    worst = Difference(max(d.output for d in found), max(d.experts for d in found))
    if not worst.output <= 1:
        raise UnsupportedBlock(f"its output differs by {worst.output:.2g} times what is allowed")
    if worst.experts > (0.0 if dtype_of(block).itemsize >= 4 else 0.1):
        raise UnsupportedBlock(f"{worst.experts:.0%} of tokens get other experts")
    return worst


def dtype_of(block: nn.Module) -> torch.dtype:
    """Of the largest parameter."""
    return max(block.parameters(), key=lambda p: p.numel()).dtype


def _difference(pair: Pair, seed: int, scale: float) -> Difference:
    x, theirs, ours = pair.batch(seed, scale)
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given.append((args, kwargs))

    experts = [child for name, child in pair.block.named_children() if name == EXPERTS]
    handles = [child.register_forward_pre_hook(note, with_kwargs=True) for child in experts]
    try:
        wanted = first(pair.run_block(x, theirs)).reshape(x.shape).double()
    finally:
        for handle in handles:
            handle.remove()
    y, routing = pair.run_moe(x, ours)
    # Where all scores vanish some gates divide 0 by 0; that is nothing to be equal to.
    real = wanted.isfinite()
    if not bool(real.all(-1).any()):
        raise UnsupportedBlock("its output is not finite; give it weights first")
    error = torch.where(real, y.double() - wanted, 0).abs().max()
    allowed = TOLERANCE[dtype_of(pair.block)] * torch.where(real, wanted, 0).abs().max()
    other = 0.0
    if given and pair.plan.compares_experts:
        call = expert_call(x.flatten(0, 1), *given[0])
        weighty = torch.where(call.weights.nan_to_num() != 0, call.ids, -1)
        differ = marks(weighty, routing.num_experts) != (routing.to_dense() != 0)
        other = float(differ.any(1).float().mean())
    return Difference(float(error / allowed.clamp(min=torch.finfo(torch.float32).tiny)), other)


def _check_rest(pair: Pair) -> None:
    """What has no link must not matter: change it and look."""
    linked = {name for link in pair.plan.links for name in link.theirs}
    x, kwargs, _ = pair.batch(0, 1.0)
    before = first(pair.run_block(x, kwargs))
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors(pair.block).items():
        if name not in linked and tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator).to(tensor.device, tensor.dtype)
            if not torch.equal(first(pair.run_block(x, kwargs, **{name: tensor + noise})), before):
                raise UnsupportedBlock(f"{name} changes its output and has no place in the conversion")
