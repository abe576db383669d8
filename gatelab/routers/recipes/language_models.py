"""Released language models whose gate is a linear map and a top-k: what differs is the weight and the loss."""

from typing import TYPE_CHECKING

from gatelab.routers.balance import GShardLoss, SwitchLoss, ZLoss
from gatelab.routers.registry import recipe
from gatelab.routers.router import Router
from gatelab.routers.score import LinearScore
from gatelab.routers.select import Capacity, Group, Recycle, TopK
from gatelab.routers.weight import Renormalize, SigmoidOfChosen, SoftmaxOverChosen

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@recipe(
    "mixtral",
    source="Mixtral, arXiv 2401.04088, §2.1; coefficient: configuration of the released 8x7B",
    equation="z = W x;  S = top-k of z;  w = softmax of z over S",
)
def mixtral(hidden_size: int, num_experts: int, top_k: int = 2, *, switch_coefficient: float = 0.02) -> Router:
    """Softmax over the chosen logits, which is the softmax over all, renormalised. Published with E = 8.

    How it was trained is not published; the loss is the Switch loss of its released code (there K times as large).
    Prefer `topk-softmax` or this as the plain baseline; they differ in the coefficient alone.
    """
    return Router(
        score=LinearScore(hidden_size, num_experts),
        activation="none",
        select=TopK(top_k),
        weight=SoftmaxOverChosen(),
        balance=[SwitchLoss(switch_coefficient)],
    )


@recipe(
    "grok-1",
    source="released code of Grok-1 (xAI, 2024)",
    equation="p = softmax(W x) in float32;  S = top-k of p;  w = p",
)
def grok_1(hidden_size: int, num_experts: int, top_k: int = 2, *, switch_coefficient: float = 0.0) -> Router:
    """The probabilities as they are: a token that is sure of nothing gets little from its 2 of 8 experts.

    No training code is published, so no balance loss is on by default.
    Prefer it to `mixtral` to let the gate also say how much the layer should contribute.
    """
    return Router(
        score=LinearScore(hidden_size, num_experts),
        select=TopK(top_k),
        balance=[SwitchLoss(switch_coefficient)],
    )


@recipe(
    "dbrx",
    source="released DBRX configuration and code (Databricks, 2024); MegaBlocks' loss",
    equation="p = softmax(W x);  S = top-k of p;  w_i = p_i / Σ_S p",
)
def dbrx(hidden_size: int, num_experts: int, top_k: int = 4, *, switch_coefficient: float = 0.05) -> Router:
    """Finer experts, more of them per token: 4 of 16. Coefficient as released; MegaBlocks' loss is 1 at balance."""
    return Router(
        score=LinearScore(hidden_size, num_experts),
        select=TopK(top_k),
        weight=Renormalize(),
        balance=[SwitchLoss(switch_coefficient)],
    )


@recipe(
    "qwen1.5-moe",
    source="released Qwen1.5-MoE-A2.7B configuration and code (Qwen, 2024)",
    equation="p = softmax(W x);  S = top-k of p;  w = p;  beside a shared expert times σ(w·x)",
)
def qwen1_5_moe(hidden_size: int, num_experts: int, top_k: int = 4, *, switch_coefficient: float = 0.001) -> Router:
    """4 of 60 experts, not renormalised. The gated shared expert is the layer's: `SharedExpert(gated_output=True)`.

    The released coefficient belongs to Hugging Face's loss, which is K at balance; here the loss is 1.
    """
    return Router(
        score=LinearScore(hidden_size, num_experts),
        select=TopK(top_k),
        balance=[SwitchLoss(switch_coefficient)],
    )


@recipe(
    "qwen3",
    source="Qwen3, arXiv 2505.09388, §2; global-batch loss: arXiv 2501.11873, §3; released configuration",
    equation="p = softmax(W x);  S = top-k of p;  w_i = p_i / Σ_S p;  loss with f over all ranks",
)
def qwen3(
    hidden_size: int,
    num_experts: int,
    top_k: int = 8,
    *,
    switch_coefficient: float = 0.001,
    process_group: "ProcessGroup | None" = None,
) -> Router:
    """8 of 128 experts, renormalised, balanced over the global batch: a domain may use few experts, the batch all.

    `process_group` are the ranks whose loads are summed; default all. Micro-batches of one rank are not summed, so
    that no forward depends on an earlier one. Coefficient of the released configuration.
    Prefer its loss to the micro-batch's when micro-batches are small or hold one domain each.
    """
    return Router(
        score=LinearScore(hidden_size, num_experts),
        select=TopK(top_k),
        weight=Renormalize(),
        balance=[SwitchLoss(switch_coefficient, "global-batch", process_group)],
    )


@recipe(
    "olmoe",
    source="OLMoE, arXiv 2409.02060, §2 and §4.1",
    equation="p = softmax(W x);  S = top-k of p;  w = p;  Switch loss 0.01 and z-loss 0.001",
)
def olmoe(
    hidden_size: int,
    num_experts: int,
    top_k: int = 8,
    *,
    switch_coefficient: float = 0.01,
    z_coefficient: float = 0.001,
) -> Router:
    """8 of 64 small experts, not renormalised, dropless: the best documented recipe of an open model."""
    return Router(
        score=LinearScore(hidden_size, num_experts),
        select=TopK(top_k),
        balance=[SwitchLoss(switch_coefficient), ZLoss(z_coefficient)],
    )


@recipe(
    "gpt-oss",
    source="gpt-oss model card, arXiv 2508.10925, §2; released code",
    equation="z = W x + b;  S = top-k of z;  w = softmax of z over S",
)
def gpt_oss(hidden_size: int, num_experts: int, top_k: int = 4, *, switch_coefficient: float = 0.0) -> Router:
    """As mixtral, with a learned bias on the logits (which weighs too, unlike a loss-free bias). 4 of 32 or 128.

    How it was trained is not published, so no loss is on by default (the released configuration says 0.9, unexplained).
    """
    return Router(
        score=LinearScore(hidden_size, num_experts, bias=True),
        activation="none",
        select=TopK(top_k),
        weight=SoftmaxOverChosen(),
        balance=[SwitchLoss(switch_coefficient)],
    )


@recipe(
    "minimax-01",
    source="MiniMax-01, arXiv 2501.08313, §2.1 (coefficient unverified); released code",
    equation="p = softmax(W x);  S = top-k of p;  w_i = p_i / Σ_S p;  loss with f over all ranks",
)
def minimax_01(
    hidden_size: int,
    num_experts: int,
    top_k: int = 2,
    *,
    capacity_factor: float | None = None,
    switch_coefficient: float = 0.01,
    process_group: "ProcessGroup | None" = None,
) -> Router:
    """2 of 32 experts with a "global router": the load is evened out over all expert-parallel ranks.

    Deviations: the paper drops tokens past a capacity it does not publish; `capacity_factor` sets one, by default
    nothing is dropped. The global router is the global-batch scope of the loss.
    """
    return Router(
        score=LinearScore(hidden_size, num_experts),
        select=Capacity(TopK(top_k), capacity_factor),
        weight=Renormalize(),
        balance=[SwitchLoss(switch_coefficient, "global-batch", process_group)],
    )


@recipe(
    "llama4",
    source="released code of Llama 4 (Meta, 2025)",
    equation="z = W x;  S = top-k of z;  y = Σ_S f_i(σ(z_i) x)",
)
def llama4(hidden_size: int, num_experts: int, top_k: int = 1, *, switch_coefficient: float = 0.001) -> Router:
    """One routed expert beside a shared one; the weight multiplies what goes *into* the expert.

    Chosen on logits, as σ saturates in float32 (18 and 19 both give 1). Coefficient of the released configuration; the
    loss reads a softmax, which the gate itself does not use.
    Prefer it with a shared expert: a small σ shrinks the expert's input, not just its output.
    """
    return Router(
        score=LinearScore(hidden_size, num_experts),
        activation="none",
        select=TopK(top_k),
        weight=SigmoidOfChosen(),
        balance=[SwitchLoss(switch_coefficient)],
        weights_on_input=True,
    )


@recipe(
    "hunyuan-large",
    source="Hunyuan-Large, arXiv 2411.02265, §2.2.2; released code",
    equation="p = softmax(W x);  S = argmax p;  w = p;  overflow goes to random experts with room",
    top_k="fixed",
)
def hunyuan_large(
    hidden_size: int,
    num_experts: int,
    top_k: int = 1,
    *,
    capacity_factor: float = 1.25,
    group: Group = "batch",
    gshard_coefficient: float = 0.01,
) -> Router:
    """One of 16 experts beside a shared one; in training, tokens past a capacity are recycled to random experts.

    A recycled token's first choice counts as requested and dropped, its weight is its probability of the expert it
    got, and the loss counts first choices alone. Evaluation has no capacity and is causal.
    Deviations: capacity factor and coefficient are not published (unverified).
    Prefer it to `switch` when dropped tokens hurt more than badly placed ones.
    """
    if top_k != 1:
        raise ValueError(f"top_k={top_k}: hunyuan-large recycles one expert per token; leave top_k at 1")
    return Router(
        score=LinearScore(hidden_size, num_experts),
        select=Recycle(TopK(top_k), capacity_factor, group),
        balance=[GShardLoss(gshard_coefficient)],
    )
