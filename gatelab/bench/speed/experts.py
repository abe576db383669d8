"""The experts alone, where their tokens go being given, against a dense layer and against transformers' experts."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from gatelab import kernels
from gatelab.bench.speed.contest import CASES, DENSE, OURS, Case, Contest, Contestant, compete, copy_of_used_weights
from gatelab.bench.speed.layer_peers import DenseSwiGLU, transformers_experts
from gatelab.layers.experts import Experts
from gatelab.routers.registry import create_router
from gatelab.routers.routing import Routing


def run(
    cases: Iterable[Case] = CASES,
    *,
    rounds: int = 9,
    seed: int = 0,
    report: Callable[[dict], None] = lambda row: None,
) -> list[dict]:
    """As `gatelab speed layer`, without the gates: arguments and rows are those of its `run`."""
    return [row for case in cases for row in compete(_enter(case, seed), rounds, report)]


def _enter(case: Case, seed: int) -> Contest:
    torch.manual_seed(seed)
    x_TD = torch.randn(case.T, case.D).to(case.dtype)
    experts = Experts(case.E, case.D, case.I).to(case.dtype)
    with torch.no_grad():
        routing = create_router("topk-softmax", case.D, case.E, case.K)(x_TD)
        with kernels.use("reference"):
            expected_TD = experts(x_TD, routing)
    contestants = {
        DENSE: Contestant(DenseSwiGLU(case.D, case.K * case.I).to(case.dtype), "-"),
        OURS: Contestant(_Routed(experts, routing), expected_TD),
    }
    for name, peer in transformers_experts(experts, routing).items():
        contestants[name] = Contestant(peer, expected_TD)
    return Contest(case, x_TD, contestants, copy_of_used_weights(case, experts, routing))


class _Routed(nn.Module):
    """(T, D) to (T, D) through experts, along one routing."""

    def __init__(self, experts: Experts, routing: Routing) -> None:
        super().__init__()
        self.experts, self.routing = experts, routing

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.experts(x_TD, self.routing)
