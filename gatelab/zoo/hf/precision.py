"""In which precision a block's gate works: what float32 does not show, and a model in half precision does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gatelab.layers.moe import MoE
from gatelab.routers.activation import Activation
from gatelab.zoo.hf.blocks import EXPERTS
from gatelab.zoo.hf.capture import dense, expert_call, others
from gatelab.zoo.hf.links import dtype_of
from gatelab.zoo.hf.pair import Pair
from gatelab.zoo.hf.plan import Plan
from gatelab.zoo.hf.shadow import stubbed

TOKENS = (2, 128)
SCALES = (0.3, 1.0, 3.0)


@dataclass(frozen=True)
class Rounded:
    """An activation whose scores are rounded to `dtype` before they are compared, so that near ones tie."""

    activation: Activation
    dtype: torch.dtype

    def __call__(self, logits_TE: Tensor) -> Tensor:
        return self.activation(logits_TE).to(self.dtype).to(logits_TE.dtype)


@dataclass(frozen=True)
class Precision:
    """The dtype of a gate's logits, and its activation, rounding or not."""

    gate_dtype: torch.dtype
    activation: Activation

    def give(self, moe: MoE) -> None:
        """Let the gate of `moe` work so."""
        moe.router.gate_dtype, moe.router.activation = self.gate_dtype, self.activation


def precisions(block: nn.Module, moe: MoE, plan: Plan) -> Sequence[Precision]:
    """The one in which our gate chooses what the block's does; all possible ones where its choices are not seen.

    Args:
        block: in evaluation mode; only a copy without experts is run, which costs next to nothing.
        moe: the block as ours, with its numbers.
        plan: what the block was read as.
    """
    candidates = list(_candidates(moe.router.activation, dtype_of(block)))
    if len(candidates) == 1 or not plan.compares_experts or EXPERTS not in dict(block.named_children()):
        return candidates
    costs = [sum(pair) for pair in zip(*_costs(block, moe, plan, candidates), strict=True)]
    return [candidates[costs.index(min(costs))]]


def _candidates(activation: Activation, dtype: torch.dtype) -> Iterator[Precision]:
    for gate_dtype in dict.fromkeys((torch.float32, dtype)):
        yield Precision(gate_dtype, activation)
        if dtype.itemsize < 4:
            yield Precision(gate_dtype, Rounded(activation, dtype))


def _costs(block: nn.Module, moe: MoE, plan: Plan, candidates: Sequence[Precision]) -> Iterator[list[float]]:
    """Per batch, each candidate's share of tokens with other experts, plus the relative error of its weights."""
    copied, stub = stubbed(block, EXPERTS, torch.Generator().manual_seed(0))
    pair = Pair(copied, moe, plan)
    for seed, scale in enumerate(SCALES):
        x, theirs, ours = pair.batch(seed, scale, TOKENS)
        with torch.no_grad():
            pair.run_block(x, theirs)
            call = expert_call(x.flatten(0, 1), stub.args, stub.kwargs)
            wanted = dense(call.ids, call.weights.double(), moe.router.num_experts)
            costs = []
            for candidate in candidates:
                candidate.give(moe)
                routing = moe.router(x, **ours)
                differ = others(call.ids, call.weights, routing).double().mean()
                # The block may scale after its experts, where our weights have the factor.
                got = routing.to_dense().double()
                error = (got * (wanted.sum() / got.sum()) - wanted).abs().sum() / wanted.abs().sum()
                costs.append(float(differ + error))
        yield costs
