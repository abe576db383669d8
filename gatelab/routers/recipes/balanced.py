"""Gates that solve for a balanced load."""

from gatelab.routers.balance import Prices
from gatelab.routers.registry import recipe
from gatelab.routers.router import Router
from gatelab.routers.score import LinearScore
from gatelab.routers.select import BalancedAssignment, Group


@recipe(
    "balanced-assignment",
    "base",
    source="BASE layers, Lewis et al. 2021, arXiv 2103.16716, §3",
    equation="maximise Σ z_ti over assignments with k experts a token and kT/E tokens an expert;  w = σ(z)",
)
def balanced_assignment(hidden_size: int, num_experts: int, top_k: int = 1, *, group: Group = "batch") -> Router:
    """Exactly even loads in training, from the optimal assignment; in evaluation top-k of logits minus prices.

    Deviations: the assignment is exact (the published auction is within 0.06-1.7 % of it and loses tokens on ties);
    k > 1 is allowed; evaluation subtracts the dual prices learned in training, where the paper takes the plain argmax;
    the paper's y = σ(z)·f(x) + (1 − σ(z))·x is σ(z)·f(x) here, the layer's residual connection carrying x.
    After gradient accumulation the prices are the mean of the micro-batches', which is not those of the whole batch.
    Prefer it when the load must be even without a loss to tune. In training a token's expert depends on the others of
    its group, so it is causal in evaluation only.
    """
    return Router(
        score=LinearScore(hidden_size, num_experts),
        activation="sigmoid",
        select=BalancedAssignment(top_k, group),
        select_on="logits",
        balance=[Prices(num_experts)],
    )
