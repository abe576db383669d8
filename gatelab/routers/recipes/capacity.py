"""Gates with a capacity: what an expert cannot take is dropped."""

from gatelab.routers.balance import (
    GaussianNoise,
    GShardLoss,
    ImportanceLoss,
    InputJitter,
    LoadLoss,
    SwitchLoss,
    ZLoss,
)
from gatelab.routers.registry import recipe
from gatelab.routers.router import Router
from gatelab.routers.score import LinearScore
from gatelab.routers.select import Capacity, Drop, Group, RandomSecond, TopK
from gatelab.routers.weight import Renormalize


@recipe(
    "switch",
    source="Switch Transformers, arXiv 2101.03961, §2.2; capacity factors and jitter: appendix and released code",
    equation="p = softmax(W (x ⊙ U(1 - ε, 1 + ε)));  S = argmax p;  at most ceil(k·T·cf/E) per expert;  w = p",
)
def switch(
    hidden_size: int,
    num_experts: int,
    top_k: int = 1,
    *,
    capacity_factor: float | None = 1.25,
    eval_capacity_factor: float | None = 2.0,
    drop: Drop = "position",
    group: Group = "batch",
    jitter: float = 0.01,
    switch_coefficient: float = 0.01,
) -> Router:
    """One expert per token, weighed by its probability; what overflows passes through the residual connection alone.

    With top_k > 1 the k probabilities are used as they are, first choices taking their places first.
    Deviations: the paper's initialisation (a tenth of the usual scale) is left to the model; padding takes no place.
    Drops, and with them causality: with `eval_capacity_factor=None` evaluation drops nothing and is causal.
    Prefer it where expert buffers must have a fixed size; else `topk-softmax` with top_k=1, which is it without drops.
    """
    return Router(
        score=LinearScore(hidden_size, num_experts),
        select=Capacity(TopK(top_k), capacity_factor, eval_capacity_factor, drop=drop, group=group),
        balance=[InputJitter(jitter), SwitchLoss(switch_coefficient)],
    )


@recipe(
    "gshard",
    source="GShard, arXiv 2006.16668, §2.2 and algorithm 1; the loss's factor E²: Lingvo's code",
    equation="g = softmax(W x);  top-2, renormalised;  the second kept with probability min(1, 2 g₂);  C = 2T/E",
)
def gshard(
    hidden_size: int,
    num_experts: int,
    top_k: int = 2,
    *,
    capacity_factor: float | None = 1.0,
    eval_capacity_factor: float | None = None,
    group: Group = "batch",
    gshard_coefficient: float = 0.01,
) -> Router:
    """Two experts per token, the second by chance in proportion to its weight; first choices take their places first.

    The two weights are renormalised before anything is dropped and stay so. Deviations: the coefficient of the loss is
    that of Lingvo's configurations (the paper has none); a second choice left out by chance takes no place, as in the
    code (in the paper's listing it does); evaluation drops nothing by default, since the paper does not say.
    Prefer it to `switch` where two experts per token are worth their cost.
    """
    if top_k > 2:
        raise ValueError(f"top_k={top_k}: gshard is defined for 2 experts per token; use st-moe for more")
    return Router(
        score=LinearScore(hidden_size, num_experts),
        select=Capacity(RandomSecond(TopK(top_k)), capacity_factor, eval_capacity_factor, group=group),
        weight=Renormalize(),
        balance=[GShardLoss(gshard_coefficient)],
    )


@recipe(
    "st-moe",
    source="ST-MoE, arXiv 2202.08906, §4 and appendix; loss of GShard on first choices, as in Mesh TensorFlow",
    equation="as gshard, the second kept with probability min(1, g₂/0.2);  + 1e-3 · mean (logsumexp z)²",
)
def st_moe(
    hidden_size: int,
    num_experts: int,
    top_k: int = 2,
    *,
    threshold: float = 0.2,
    capacity_factor: float | None = 1.25,
    eval_capacity_factor: float | None = 2.0,
    group: Group = "batch",
    gshard_coefficient: float = 0.01,
    z_coefficient: float = 0.001,
) -> Router:
    """GShard made stable by the z-loss, which keeps logits small enough for low precision.

    Deviations: later choices are left out in training alone; the threshold is unverified (public reimplementations).
    Prefer it to `gshard` when training in bfloat16 or when losses spike.
    """
    return Router(
        score=LinearScore(hidden_size, num_experts),
        select=Capacity(RandomSecond(TopK(top_k), threshold), capacity_factor, eval_capacity_factor, group=group),
        weight=Renormalize(),
        balance=[GShardLoss(gshard_coefficient), ZLoss(z_coefficient)],
    )


@recipe(
    "v-moe",
    source="V-MoE, arXiv 2106.05974, §2.2, §4.1 and appendix A.2; released code",
    equation="p = softmax(W x + N(0, 1/E²));  top-k;  w = p;  losses CV²(importance) and CV²(load)",
)
def v_moe(
    hidden_size: int,
    num_experts: int,
    top_k: int = 2,
    *,
    noise: float = 1.0,
    capacity_factor: float | None = 1.05,
    eval_capacity_factor: float | None = 1.05,
    drop: Drop = "position",
    group: Group = "batch",
    importance_coefficient: float = 0.005,
    load_coefficient: float = 0.005,
) -> Router:
    """The gate of vision MoE: a little Gaussian noise, two variation losses, and a tight capacity.

    `noise` is in units of 1/E. `drop="priority"` is batch-prioritised routing, which keeps the tokens the gate is
    surest of and lets capacity factors far below 1 work. Weights are not renormalised. The paper's λ = 0.01 on the mean
    of the two losses is 0.005 on each. Deviation: C is rounded up, where the paper rounds to nearest.
    Prefer it, with `drop="priority"`, for encoders of images, where later tokens may decide about earlier ones.
    """
    return Router(
        score=LinearScore(hidden_size, num_experts),
        select=Capacity(TopK(top_k), capacity_factor, eval_capacity_factor, drop=drop, group=group),
        balance=[
            GaussianNoise(noise / num_experts),
            ImportanceLoss(importance_coefficient),
            LoadLoss(load_coefficient, top_k, excluding=False),
        ],
    )
