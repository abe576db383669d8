"""Gates that are told where tokens go."""

from os import PathLike
from typing import Any, Literal

from gatelab.routers.registry import create_router, recipe
from gatelab.routers.router import Router
from gatelab.routers.routing import Routing
from gatelab.routers.score import NoScore
from gatelab.routers.select import ByLabel, Replay
from gatelab.routers.soft_router import SoftRouter
from gatelab.routers.weight import Constant


@recipe("oracle", source="a baseline of this library", equation="label l to experts (l·k + j) mod E, j < k;  w = 1/k")
def oracle(hidden_size: int, num_experts: int, top_k: int = 1) -> Router:
    """Experts by the `labels` of the call (domains, languages, classes): what perfect specialisation would be worth.

    Labels of next tokens would make it an oracle indeed: give it what is known beforehand. `router_logits` are zeros.
    """
    return Router(score=NoScore(hidden_size, num_experts), select=ByLabel(top_k), weight=Constant(1 / top_k))


@recipe(
    "replay",
    source="a tool of this library; router replay as in Megatron-LM and vLLM",
    equation="the assignments of a recorded Routing;  w as recorded, or recomputed by another gate",
    top_k="fixed",
)
def replay(
    hidden_size: int,
    num_experts: int,
    top_k: int | None = None,
    *,
    routing: Routing | str | PathLike[str] | None = None,
    weights: Literal["recorded", "recomputed"] = "recorded",
    base: str = "topk-softmax",
    **options: Any,
) -> Router:
    """Routes exactly as recorded: the same tokens to the same experts, in the same order of choice.

    `routing` is a Routing or the path of a saved one; set `router.select.routing` to replay another. `num_experts` are
    its columns. Weights `recorded` are the Routing's own, without a gradient, and `router_logits` are zeros; weights
    `recomputed` come from the gate `base` (with its `options`), which learns while its selection is replayed: what
    reinforcement learning needs when sampling and training would otherwise route differently. What was dropped before
    it was recorded is not requested again, nor is it there when weights are renormalised: recomputed weights of gates
    that renormalise over dropped choices too come out larger. Not causal as far as anyone can promise.
    Prefer the `forced=` argument of a call to replay a single one.
    """
    if top_k is not None and weights == "recorded":
        raise ValueError(f"top_k={top_k}: replay takes the experts that are recorded; leave top_k out")
    recorded = Routing.load(routing) if isinstance(routing, (str, PathLike)) else routing
    if weights == "recorded":
        if options:
            raise ValueError(f"replay has no option {next(iter(options))!r} with weights='recorded'")
        on_input = recorded is not None and recorded.weights_on_input
        return Router(score=NoScore(hidden_size, num_experts), select=Replay(recorded), weights_on_input=on_input)
    if weights != "recomputed":
        raise ValueError(f"weights={weights!r} is unknown; choose 'recorded' or 'recomputed'")
    router = create_router(base, hidden_size, num_experts, top_k, **options)
    if isinstance(router, SoftRouter):
        raise ValueError(f"base={base!r} selects nothing that could be replayed; name a gate that selects experts")
    router.select = Replay(recorded, router.select)
    return router
