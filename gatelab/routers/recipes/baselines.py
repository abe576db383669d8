"""Baselines: what a learned gate has to beat."""

from gatelab.routers.registry import recipe
from gatelab.routers.router import Router
from gatelab.routers.score import NoScore
from gatelab.routers.select import AllExperts, RandomK, RoundRobin
from gatelab.routers.weight import Constant

OURS = "a baseline of this library"


@recipe("dense", source=OURS, equation="every token to every expert;  w = 1", top_k="fixed")
def dense(hidden_size: int, num_experts: int, top_k: int | None = None) -> Router:
    """No routing: E experts of width I are together one MLP of width E·I. `router_logits` are zeros."""
    if top_k not in (None, num_experts):
        raise ValueError(f"top_k={top_k}: dense uses all num_experts={num_experts}; leave top_k out")
    return Router(score=NoScore(hidden_size, num_experts), select=AllExperts(num_experts), weight=Constant(1.0))


@recipe("random", source=OURS, equation="k distinct experts, uniform;  w = 1/k")
def random(hidden_size: int, num_experts: int, top_k: int = 2) -> Router:
    """Experts drawn by lot for each token, anew every time, in evaluation too. `router_logits` are zeros."""
    return Router(score=NoScore(hidden_size, num_experts), select=RandomK(top_k), weight=Constant(1 / top_k))


@recipe("round-robin", source=OURS, equation="real token s of a row to experts (s·k + j) mod E, j < k;  w = 1/k")
def round_robin(hidden_size: int, num_experts: int, top_k: int = 2) -> Router:
    """Experts in turn, by position: perfectly even and blind to content. `router_logits` are zeros."""
    return Router(score=NoScore(hidden_size, num_experts), select=RoundRobin(top_k), weight=Constant(1 / top_k))
