"""Skywork-MoE."""

import functools

from gatelab.routers.activation import std_softmax
from gatelab.routers.balance import DeviationLoss
from gatelab.routers.checks import check_positive
from gatelab.routers.registry import recipe
from gatelab.routers.router import Router
from gatelab.routers.score import LinearScore
from gatelab.routers.select import Capacity, Group, TopK
from gatelab.routers.weight import Renormalize


@recipe(
    "skywork-moe",
    source="Skywork-MoE, Wei et al. 2024, arXiv 2406.06563, §4; SkyworkAI/vllm, models/skywork_moe.py",
    equation="z = W x;  p = softmax(λ (z − mean z)/std z);  top-k;  w = p / Σ p;  loss a·Σ (1/E − mean p_i)²",
)
def skywork_moe(
    hidden_size: int,
    num_experts: int,
    top_k: int = 2,
    *,
    sharpness: float = 1.0,
    capacity_factor: float | None = 1.25,
    eval_capacity_factor: float | None = None,
    group: Group = "batch",
    initial: float = 0.01,
) -> Router:
    """Logits normalised to one spread, so that no gate is undecided, and a balance loss that follows the drop rate.

    Each layer's coefficient a moves towards a fifth of its drop rate, 0.01 at most; after gradient accumulation it is
    that of the whole batch exactly with `group="sequence"` or without a capacity, whereas with `group="batch"` each
    micro-batch has a capacity of its own, and so its own drops. Equal logits, 0/0 in the paper, give equal
    probabilities. The paper writes a bias on the logits, the released inference code has none, and neither has this; it
    renormalises the two weights. The capacity factor and the loss's first coefficient are not published (unverified);
    without a capacity nothing is dropped and the loss fades away.
    Prefer it when gates stay near uniform, as after upcycling a dense model.
    """
    check_positive(sharpness=sharpness)
    return Router(
        score=LinearScore(hidden_size, num_experts),
        activation=std_softmax if sharpness == 1.0 else functools.partial(std_softmax, scale=sharpness),
        select=Capacity(TopK(top_k), capacity_factor, eval_capacity_factor, group=group),
        weight=Renormalize(),
        balance=[DeviationLoss(initial)],
    )
