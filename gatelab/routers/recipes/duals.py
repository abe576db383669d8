"""Gates that balance by prices found from the scores themselves: sweeps, quantiles, Sinkhorn's scaling."""

from gatelab.routers.balance import QuantilePrices, SweptPrices
from gatelab.routers.registry import recipe
from gatelab.routers.router import Router
from gatelab.routers.score import LinearScore
from gatelab.routers.select import SinkhornTopK, TopK
from gatelab.routers.weight import Renormalize


@recipe(
    "bip",
    source="Sun 2025, arXiv 2502.15451, algorithm 1 (recalled, unverified)",
    equation="p = softmax(W x);  sweeps for q ≥ 0 (q_i: what KT/E tokens exceed);  top-k of p − q;  w = p",
)
def bip(hidden_size: int, num_experts: int, top_k: int = 2, *, sweeps: int = 4) -> Router:
    """A binary integer program for the load, solved by a few dual sweeps per batch.

    In training each batch is routed by prices solved on it, so the load is nearly even from the first step, and a
    token's experts depend on the others of its batch: causal in evaluation only, with the prices of the last step.
    After gradient accumulation the prices are the mean of the micro-batches', not those of the whole batch. Weights are
    not renormalised. Deviation: the least price is subtracted from all after each sweep, as they drift otherwise.
    Prefer `quantile-balancing`, which is the same step without the clamp, causal in training too.
    """
    return Router(
        score=LinearScore(hidden_size, num_experts),
        select=TopK(top_k),
        balance=[SweptPrices(num_experts, top_k, sweeps)],
    )


@recipe(
    "quantile-balancing",
    source="Kimi K3, arXiv 2607.24653, equations 13-15; Megatron-LM's quantile_balancing",
    equation="s = σ(z), z = W x;  top-k of z − β;  w = s / Σ s;  β from one dual step on the last batch",
)
def quantile_balancing(hidden_size: int, num_experts: int, top_k: int = 16) -> Router:
    """Prices that put each expert's cutoff where exactly its share of the last batch came; no rate, no loss.

    Deviations: prices act on the logits (as in Megatron), where Kimi K3 adds them to σ(z), which ties at large logits;
    with top_k=1 the weight is σ(z), since renormalised it would be 1 and nothing would train the gate;
    the quantile is exact per micro-batch and the micro-batches' mean is taken (as in Megatron), where K3 adds up
    histograms over the global batch. So after gradient accumulation the prices are close to, but not, the whole
    batch's.
    Prefer it as the causal, dropless, loss-free default with many experts: a few steps balance any stationary load.
    """
    return Router(
        score=LinearScore(hidden_size, num_experts),
        activation="sigmoid",
        select=TopK(top_k),
        select_on="logits",
        weight=Renormalize() if top_k > 1 else (),
        balance=[QuantilePrices(num_experts, top_k)],
    )


@recipe(
    "sinkhorn",
    "s-base",
    source="S-BASE, Clark et al. 2022, arXiv 2202.01169; Megatron-LM's sinkhorn_load_balancing",
    equation="in training top-k of exp(z) scaled to rows 1/T and columns 1/E;  w = σ(z) if k = 1 else softmax(z)",
)
def sinkhorn(hidden_size: int, num_experts: int, top_k: int = 1, *, iterations: int = 16) -> Router:
    """The nearly even load of an entropic transport plan; no gradient flows through the plan.

    Weights are not renormalised. Evaluation takes the top-k of the plain logits, as published: it keeps no price, so
    the load there is what the logits alone give. Deviations: see `SinkhornTopK`.
    Prefer `balanced-assignment` (exact, and balanced in evaluation too) unless everything must stay on the GPU.
    """
    return Router(
        score=LinearScore(hidden_size, num_experts),
        activation="sigmoid" if top_k == 1 else "softmax",
        select=SinkhornTopK(top_k, iterations),
        select_on="logits",
    )
