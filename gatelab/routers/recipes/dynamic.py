"""Gates with a different number of experts for every token."""

from gatelab.routers.balance import EntropyLoss, QuantileThreshold, SparsityLoss, SwitchLoss
from gatelab.routers.registry import recipe
from gatelab.routers.router import Router
from gatelab.routers.score import LinearScore
from gatelab.routers.select import Positive, TopP


@recipe(
    "dynamic-top-p",
    source="Huang et al. 2024, arXiv 2403.07652, §3",
    equation="p = softmax(W x);  the shortest prefix of sorted p whose sum exceeds the threshold;  w = p",
    top_k="fixed",
)
def dynamic_top_p(
    hidden_size: int,
    num_experts: int,
    top_k: int | None = None,
    *,
    threshold: float = 0.4,
    switch_coefficient: float = 0.01,
    entropy_coefficient: float = 1e-4,
) -> Router:
    """As many experts as it takes to gather a share of the probability: unsure tokens get more.

    Weights are not renormalised. The entropy loss keeps the gate from hesitating its way to all experts (coefficients
    recalled, unverified). The number of experts follows from the threshold, so `top_k` cannot be set.
    Prefer it when compute should follow difficulty and a varying cost per token is acceptable.
    """
    if top_k is not None:
        raise ValueError(f"top_k={top_k}: dynamic-top-p takes as many experts as threshold={threshold} needs; set that")
    return Router(
        score=LinearScore(hidden_size, num_experts),
        select=TopP(threshold),
        balance=[SwitchLoss(switch_coefficient), EntropyLoss(entropy_coefficient)],
    )


@recipe(
    "remoe",
    source="ReMoE, Wang et al. 2024, arXiv 2412.14711, §3; released code",
    equation="s = ReLU(W x);  every expert with s > 0;  w = s;  loss λ·E·Σ f_i mean(s_i), λ steered by the sparsity",
)
def remoe(hidden_size: int, num_experts: int, top_k: int = 1, *, initial: float = 1e-8, factor: float = 1.2) -> Router:
    """ReLU gates, differentiable everywhere; the L1 weight λ steers the mean number of experts per token to `top_k`.

    It starts near density 1/2 and is dense for the first few hundred steps, which cost accordingly. A token may reach
    no expert. After gradient accumulation λ is that of the whole batch exactly. Deviations: one λ per gate, and bounds.
    Prefer it when a discontinuous top-k hurts; not in bfloat16 gates, where it was reported to diverge.
    """
    return Router(
        score=LinearScore(hidden_size, num_experts),
        activation="relu",
        select=Positive(),
        balance=[SparsityLoss(num_experts, top_k, initial, factor)],
    )


@recipe(
    "expert-threshold",
    source="Sun et al. 2026, arXiv 2603.11535",
    equation="z = W x;  expert i takes every token with z_i > c_i, a moving average of its top-k/E quantile;  w = σ(z)",
)
def expert_threshold(hidden_size: int, num_experts: int, top_k: int = 1, *, decay: float = 0.99) -> Router:
    """Expert choice made causal: each expert compares with a threshold learned from earlier batches.

    `top_k` is the mean number of experts per token aimed at; a token may reach none, which is why the paper has a
    shared expert beside them. Weights are σ(z), not normalised. Deviation: the paper warms up with 4,000 steps of
    expert choice, which sees the future; here the first batch is routed by per-token top-k and its quantiles seed the
    thresholds. After gradient accumulation the thresholds are the mean of the micro-batches', not those of the whole
    batch.
    Prefer it to expert-choice for language models.
    """
    return Router(
        score=LinearScore(hidden_size, num_experts),
        activation="sigmoid",
        select=Positive(),
        select_on="logits",
        balance=[QuantileThreshold(num_experts, top_k, decay)],
    )
