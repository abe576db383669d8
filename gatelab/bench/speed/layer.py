"""The whole layer, gate included, against a dense layer of the same active FLOPs and against other libraries."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from gatelab import kernels
from gatelab.bench.speed.alternate import Call
from gatelab.bench.speed.contest import (
    CASES,
    DENSE,
    GATE,
    OURS,
    Case,
    Contest,
    Contestant,
    compete,
    copy_of_used_weights,
)
from gatelab.bench.speed.layer_peers import DenseSwiGLU, another_function, transformers_blocks
from gatelab.layers.experts import Experts
from gatelab.layers.moe import MoE
from gatelab.routers.registry import create_router
from gatelab.routers.router import Router


def run(
    cases: Iterable[Case] = CASES,
    *,
    rounds: int = 9,
    seed: int = 0,
    report: Callable[[dict], None] = lambda row: None,
) -> list[dict]:
    """Time the layers on every case, on all cores, all of them in turn in every round.

    Peers: `transformers` (Mixtral's block: eager and grouped_mm) with our weights, st-moe-pytorch with its own, where
    installed (extra `peers`). Beside them the gate alone of our layer, losses included, and for few tokens a plain copy
    of the weights of the experts that were used.

    Args:
        cases: what to time.
        rounds: after one that is not counted.
        seed: of weights and tokens.
        report: called with every row as soon as it is known.

    Returns:
        The rows of `gatelab.bench.speed.contest.compete`.
    """
    return [row for case in cases for row in compete(enter(case, seed), rounds, report)]


def enter(case: Case, seed: int) -> Contest:
    """Our layer, the dense one and the peers, with weights and tokens drawn anew."""
    torch.manual_seed(seed)
    x_TD = torch.randn(case.T, case.D).to(case.dtype)
    router = create_router("topk-softmax", hidden_size=case.D, num_experts=case.E, top_k=case.K)
    experts = Experts(case.E, case.D, case.I)
    moe = MoE(router, experts).to(case.dtype)
    with torch.no_grad(), kernels.use("reference"):
        expected_TD, routing = moe(x_TD)
        router.gate_dtype = case.dtype  # as in transformers' blocks: in bfloat16 other experts may come out
        expected_of_peers_TD = moe(x_TD)[0]
        router.gate_dtype = torch.float32
    contestants = {
        DENSE: Contestant(DenseSwiGLU(case.D, case.K * case.I).to(case.dtype), "-"),
        OURS: Contestant(moe.as_block(), expected_TD),
    }
    for name, block in transformers_blocks(router.get_parameter("score.weight"), experts, case.K).items():
        contestants[name] = Contestant(block, expected_of_peers_TD)
    if case.dtype == torch.float32:
        for name, layer in another_function(case.D, case.I, case.E, case.K).items():
            contestants[name] = Contestant(layer, "drops tokens")
    beside = {GATE: _gate(router, x_TD, case.backward), **copy_of_used_weights(case, experts, routing)}
    return Contest(case, x_TD, contestants, beside)


def _gate(router: Router, x_TD: Tensor, backward: bool) -> Call:
    """What the gate has of our layer: scores, selection, weights, statistics and losses."""
    x_leaf = x_TD.clone().requires_grad_(backward)

    def call() -> None:
        with torch.set_grad_enabled(backward):
            routing = router(x_leaf)
        if backward:
            (routing.weights.square().sum() + routing.aux_loss).backward()
            router.zero_grad()
            x_leaf.grad = None

    return call
