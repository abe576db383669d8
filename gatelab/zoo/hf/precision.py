"""In which precision a block's gate works: what float32 does not show, and a model in half precision does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gatelab.layers.moe import MoE
from gatelab.routers.activation import Activation
from gatelab.routers.context import Context, Selection
from gatelab.routers.guarantees import Guarantees
from gatelab.routers.router import Router
from gatelab.routers.select import GroupLimitedTopK, TopK
from gatelab.zoo.hf.blocks import EXPERTS
from gatelab.zoo.hf.capture import dense, expert_call, others
from gatelab.zoo.hf.links import dtype_of
from gatelab.zoo.hf.pair import Pair
from gatelab.zoo.hf.plan import Plan
from gatelab.zoo.hf.shadow import stubbed

TOKENS = (2, 128)
SCALES = (0.03, 0.3, 1.0, 3.0, 30.0)  # the first lets near scores tie, the last lets small ones vanish


@dataclass(frozen=True)
class Rounded:
    """An activation whose scores are rounded to `dtype` before they are compared, so that near ones tie."""

    activation: Activation
    dtype: torch.dtype

    def __call__(self, logits_TE: Tensor) -> Tensor:
        return self.activation(logits_TE).to(self.dtype).to(logits_TE.dtype)


class RoundedSelect(nn.Module):
    """A selection that works in `dtype`: biased scores and sums of a group are rounded too, so that near ones tie.

    Args:
        select: the selection; it owns no gradient of its gates.
        dtype: of the scores it is given.
    """

    def __init__(self, select: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.select, self.dtype = select, dtype

    @property
    def k(self) -> int | None:
        """Experts per token."""
        return getattr(self.select, "k", None)

    def forward(self, scores_TE: Tensor, ctx: Context) -> Selection:
        return self.select(scores_TE.to(self.dtype), ctx)

    def guarantees(self, training: bool) -> Guarantees:
        return Guarantees.joint([self.select], training)

    def extra_repr(self) -> str:
        return f"dtype={self.dtype}"


@dataclass(frozen=True)
class Precision:
    """The dtype of a gate's logits; its activation and its selection, rounding or not."""

    gate_dtype: torch.dtype
    activation: Activation
    select: Callable[[Tensor, Context], Selection]

    def give(self, moe: MoE) -> None:
        """Let the gate of `moe` work so."""
        router = moe.router
        router.gate_dtype, router.activation, router.select = self.gate_dtype, self.activation, self.select


def precisions(block: nn.Module, moe: MoE, plan: Plan) -> Sequence[Precision]:
    """The one in which our gate chooses what the block's does; all possible ones where its choices are not seen.

    Args:
        block: in evaluation mode; only a copy without experts is run, which costs next to nothing.
        moe: the block as ours, with its numbers.
        plan: what the block was read as.
    """
    candidates = list(_candidates(moe.router, dtype_of(block)))
    if len(candidates) == 1 or not plan.compares_experts or EXPERTS not in dict(block.named_children()):
        return candidates
    costs = [sum(pair) for pair in zip(*_costs(block, moe, plan, candidates), strict=True)]
    return [candidates[costs.index(min(costs))]]


def _candidates(router: Router, dtype: torch.dtype) -> Iterator[Precision]:
    activation, select = router.activation, router.select
    for gate_dtype in dict.fromkeys((torch.float32, dtype)):
        yield Precision(gate_dtype, activation, select)
        if dtype != torch.float32:
            rounded = torch.float32 if dtype == torch.float64 else dtype
            yield Precision(gate_dtype, Rounded(activation, rounded), select)
            if isinstance(select, TopK | GroupLimitedTopK):  # the others compare nothing, or own their gates
                yield Precision(gate_dtype, Rounded(activation, rounded), RoundedSelect(select, rounded))


def _costs(block: nn.Module, moe: MoE, plan: Plan, candidates: Sequence[Precision]) -> Iterator[list[float]]:
    """Per batch, each candidate's share of tokens with other experts, plus the relative error of its weights."""
    copied, stub = stubbed(block, EXPERTS, plan.x.shape[-1], torch.Generator().manual_seed(0))
    pair = Pair(copied, moe, plan)
    for seed, scale in enumerate(SCALES):
        x, theirs, ours = pair.batch(seed, scale, TOKENS)
        with torch.no_grad():
            _, args, named, _ = stub.watch(lambda x=x, theirs=theirs: pair.run_block(x, theirs), x.flatten(0, 1))
            call = expert_call(x.flatten(0, 1), args, named)
            wanted = dense(call.ids, call.weights.double(), moe.router.num_experts)
            costs = []
            for candidate in candidates:
                candidate.give(moe)
                routing = moe.router(x, **ours)
                differ = others(call.ids, call.weights, routing).double().mean()
                # The block may scale after its experts, where our weights have the factor. Rounded like the block's, as
                # that says nothing about what it compared.
                got = routing.to_dense().double()
                got = (got * (wanted.sum() / got.sum())).to(call.weights.dtype)
                error = (got - wanted).abs().sum() / wanted.abs().sum()
                costs.append(float(differ + error))
        yield costs
