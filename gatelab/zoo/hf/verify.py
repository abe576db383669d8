"""Proof that a converted block does what it did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gatelab.layers.moe import MoE
from gatelab.zoo.hf.blocks import EXPERTS
from gatelab.zoo.hf.capture import expert_call, others
from gatelab.zoo.hf.errors import UnsupportedBlock
from gatelab.zoo.hf.links import dtype_of, tensors
from gatelab.zoo.hf.pair import Pair
from gatelab.zoo.hf.plan import Plan, first

SCALES = (0.1, 1.0, 10.0)
BATCHES_PER_SCALE = 2
SHAPE = (2, 16)
# Of the largest entry of the output. Half precision rounds every product, so there it only tells formulas apart.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
# The share of tokens that may differ: in half precision two scores may tie on one side and not on the other.
RARE = {torch.float64: 0.0, torch.float32: 0.0, torch.float16: 0.1, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class Difference:
    """Between a block and ours.

    Attributes:
        output: the largest of a token, rare ones aside, over what is allowed.
        mean: that of all tokens.
        experts: the share of tokens with other experts, where the block shows them.
    """

    output: float
    mean: float
    experts: float


def verify(block: nn.Module, moe: MoE, plan: Plan) -> Difference:
    """Run both, in evaluation mode, on random batches at scales 0.1, 1 and 10 and compare.

    Returns:
        The largest differences.

    Raises:
        UnsupportedBlock: an output differs, a token has other experts, or a tensor without a place in the conversion
            changes the output.
    """
    pair = Pair(block, moe, plan)
    with torch.no_grad():
        found = [_difference(pair, i, scale) for i, scale in enumerate(SCALES * BATCHES_PER_SCALE)]
        found += [_difference(pair.with_other_gates(seed), seed, 1.0) for seed in range(2)]
        _check_rest(pair)
    worst = Difference(*(max(getattr(d, name) for d in found) for name in ("output", "mean", "experts")))
    dtype = dtype_of(block)
    if not worst.output <= 1:
        raise UnsupportedBlock(
            f"its output differs by {worst.output:.2g} times what is allowed, "
            f"{TOLERANCE[dtype]:g} of its largest entry in {str(dtype).removeprefix('torch.')}"
        )
    if worst.experts > RARE[dtype]:
        raise UnsupportedBlock(f"{worst.experts:.0%} of tokens get other experts")
    return worst


def _difference(pair: Pair, seed: int, scale: float) -> Difference:
    x, theirs, ours = pair.batch(seed, scale, SHAPE)
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given.append((args, kwargs))

    experts = [child for name, child in pair.block.named_children() if name == EXPERTS]
    handles = [child.register_forward_pre_hook(note, with_kwargs=True) for child in experts]
    try:
        wanted = first(pair.run_block(x, theirs)).reshape(x.shape).flatten(0, -2).double()
    finally:
        for handle in handles:
            handle.remove()
    y, routing = pair.run_moe(x, ours)
    # Where all scores vanish some gates divide 0 by 0; that is nothing to be equal to.
    real = wanted.isfinite()
    if not bool(real.all(-1).any()):
        raise UnsupportedBlock("its output is not finite; give it weights first")
    differ = torch.zeros(len(wanted), dtype=torch.bool, device=x.device)
    if given and pair.plan.compares_experts:
        call = expert_call(x.flatten(0, 1), *given[0])
        differ = others(call.ids, call.weights, routing)
    dtype = dtype_of(pair.block)
    largest = torch.where(real, wanted, 0).abs().max()
    allowed = TOLERANCE[dtype] * largest.clamp(min=torch.finfo(dtype).tiny)
    error_T = torch.where(real, y.flatten(0, -2).double() - wanted, 0).abs().amax(-1)
    return Difference(
        output=float(error_T.quantile(1 - RARE[dtype]) / allowed),
        mean=float(error_T.mean() / allowed),
        experts=float(differ.float().mean()),
    )


def _check_rest(pair: Pair) -> None:
    """What has no link must not matter: change it and look."""
    linked = {name for link in pair.plan.links for name in link.theirs}
    x, kwargs, _ = pair.batch(0, 1.0, SHAPE)
    before = first(pair.run_block(x, kwargs))
    # A tenth of what is allowed: another order of a token's experts is another rounding of their sum.
    allowed = 0.1 * TOLERANCE[x.dtype] * before.abs().max()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors(pair.block).items():
        if name not in linked and tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator).to(tensor.device, tensor.dtype)
            change = first(pair.run_block(x, kwargs, **{name: tensor + noise})) - before
            if not bool((change.abs() <= allowed).all()):
                raise UnsupportedBlock(f"{name} changes its output and has no place in the conversion")
