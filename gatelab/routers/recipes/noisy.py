"""The gate that began it, and the one that samples."""

from typing import TYPE_CHECKING

from gatelab.routers.balance import ImportanceLoss, LearnedNoise, LoadLoss, SwitchLoss
from gatelab.routers.registry import recipe
from gatelab.routers.router import Router
from gatelab.routers.score import LinearScore
from gatelab.routers.select import SparseMixer, TopK
from gatelab.routers.weight import SoftmaxOverChosen

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@recipe(
    "noisy-topk",
    source="Shazeer et al. 2017, arXiv 1701.06538, §2.1, §4 and appendix A",
    equation="h = W x + N(0, 1) · softplus(W_noise x);  S = top-k of h;  w = softmax of h over S",
)
def noisy_topk(
    hidden_size: int,
    num_experts: int,
    top_k: int = 4,
    *,
    importance_coefficient: float = 0.1,
    load_coefficient: float = 0.1,
) -> Router:
    """Top-k with noise whose size is learned, and losses on the variation of weights and of probable loads.

    Deviations: only W_noise starts at 0, as W would make every evaluation a tie; σ is at least 0.01, as in the authors'
    code. In evaluation there is no noise and so no load loss.
    Prefer it where exploration matters more than cost: twice the parameters of a linear gate.
    """
    return Router(
        score=LinearScore(hidden_size, num_experts),
        activation="none",
        select=TopK(top_k),
        weight=SoftmaxOverChosen(),
        balance=[
            LearnedNoise(hidden_size, num_experts),
            ImportanceLoss(importance_coefficient, sparse=True),
            LoadLoss(load_coefficient, top_k),
        ],
    )


@recipe(
    "grin",
    source="GRIN, arXiv 2409.12136, §3; released Phi-3.5-MoE",
    equation="k times: p = softmax of z where (max - z)/max(|z|, max) ≤ 2ε;  sample from p;  w = p",
)
def grin(
    hidden_size: int,
    num_experts: int,
    top_k: int = 2,
    *,
    eps: float = 0.01,
    switch_coefficient: float = 0.01,
    process_group: "ProcessGroup | None" = None,
) -> Router:
    """SparseMixer-v2: the gate learns from the choice it made, not only from the weight it gave.

    Weights are two separate softmaxes and need not sum to 1. The load of the balance loss is counted over all ranks.
    Deviations: no input jitter (the released model sets it to 0); the coefficient is unverified.
    Prefer it when k is small and the gate's gradient, not its cost, is the limit. Training samples, evaluation does
    not.
    """
    return Router(
        score=LinearScore(hidden_size, num_experts),
        select=SparseMixer(top_k, eps),
        select_on="logits",
        balance=[SwitchLoss(switch_coefficient, "global-batch", process_group)],
    )
