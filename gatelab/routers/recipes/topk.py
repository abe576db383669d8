"""Top-k softmax gates."""

from gatelab.routers.balance import SwitchLoss
from gatelab.routers.registry import recipe
from gatelab.routers.router import Router
from gatelab.routers.score import LinearScore
from gatelab.routers.select import TopK
from gatelab.routers.weight import Renormalize


@recipe(
    "topk-softmax",
    source="Shazeer et al. 2017, arXiv 1701.06538, §2.1; loss of Switch Transformers, arXiv 2101.03961, §2.2",
    equation="z = W x;  p = softmax(z);  S = top-k of p;  w_i = p_i / Σ_{j in S} p_j",
)
def topk_softmax(
    hidden_size: int,
    num_experts: int,
    top_k: int = 2,
    *,
    renormalize: bool | None = None,
    switch_coefficient: float = 0.01,
    bias: bool = False,
) -> Router:
    """The gate most models use: softmax over all experts, the k largest, renormalised over those k.

    Equal to a softmax over the k largest logits. With k = 1 the renormalised weight would be the constant 1 and the
    gate would not learn, so there the weight stays p (Switch); `renormalize` overrides either way.
    Deviation from Shazeer et al.: no noise, and the Switch loss instead of importance and load.
    Prefer it as the baseline of anything else: cheap, causal, dropless, but unbalanced without its loss.
    """
    if renormalize is None:
        renormalize = top_k > 1
    return Router(
        score=LinearScore(hidden_size, num_experts, bias),
        select=TopK(top_k),
        weight=[Renormalize()] if renormalize else [],
        balance=[SwitchLoss(switch_coefficient)] if switch_coefficient else [],
    )
