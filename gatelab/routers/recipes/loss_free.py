"""Loss-free balancing."""

from gatelab.routers.balance import SignBias
from gatelab.routers.registry import recipe
from gatelab.routers.router import Router
from gatelab.routers.score import LinearScore
from gatelab.routers.select import TopK


@recipe(
    "loss-free",
    source="Wang et al. 2024, arXiv 2408.15664, §3, algorithm 1",
    equation="s = σ(W x);  top-k of s + b;  w = s;  after each step b_i += u · sign(n̄ − n_i)",
)
def loss_free(
    hidden_size: int, num_experts: int, top_k: int = 6, *, bias_rate: float = 1e-3, centred: bool = False
) -> Router:
    """Sigmoid scores, and a bias on the selection alone that follows the load: no balance loss, no gradient from one.

    Weights are the raw scores. After gradient accumulation the bias is that of the whole batch exactly. Sigmoids of
    logits beyond ±17 are equal in float32 and tie. With the published u the bias moves at most 0.001 per step: from a
    skewed start that takes hundreds of steps (docs/duals.md has the figure).
    Prefer it when a balance loss costs quality and the imbalance is mild; `quantile-balancing` needs no rate.
    """
    return Router(
        score=LinearScore(hidden_size, num_experts),
        activation="sigmoid",
        select=TopK(top_k),
        balance=[SignBias(num_experts, bias_rate, centred)],
    )
