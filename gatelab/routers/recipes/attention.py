"""Gates that attend over experts."""

import functools

from gatelab.routers.registry import recipe
from gatelab.routers.router import Router
from gatelab.routers.score import AttentionScore
from gatelab.routers.select import TopK
from gatelab.routers.weight import SoftmaxOverChosen

SOURCE = "Yuan 2.0-M32, arXiv 2405.17976, §2.2"


@recipe(
    "attention",
    source=SOURCE,
    equation="q, k, v = W_q x, W_k x, W_v x;  z_i = Σ_j softmax_j(q_i k_j) v_j;  top-k;  w = softmax over the chosen",
)
def attention(hidden_size: int, num_experts: int, top_k: int = 2, *, lfa: bool = False) -> Router:
    """The Attention Router of Yuan 2.0-M32: logits from an attention over the experts inside each token.

    As published it has no balance loss, no 1/√d, no mask. `lfa=True` lets q and k read the LFA-filtered sequence and v
    the raw one: the reading of the article that made the router known, not what was released (there LFA sits in
    self-attention).
    Prefer it when experts' correlation matters and E is small: 3× the parameters of a linear gate and 4·E² more FLOPs.
    The paper measures a loss of 2.109 against 2.117 for a linear gate (Table 1).
    """
    return Router(
        score=AttentionScore(hidden_size, num_experts, lfa),
        activation="none",
        select=TopK(top_k),
        weight=SoftmaxOverChosen(),
    )


recipe(
    "attention-lfa",
    source=SOURCE + "; LFA of Yuan 2.0, arXiv 2311.15786, §2.1",
    equation="as attention, with q and k from RMSNorm(x + filter(x)), a causal filter over three positions",
)(functools.wraps(attention)(functools.partial(attention, lfa=True)))


@recipe(
    "yuan2-m32",
    source=SOURCE + "; the released model: 32 experts, top-2",
    equation="as attention, over 32 experts",
)
def yuan2_m32(hidden_size: int, num_experts: int, top_k: int = 2) -> Router:
    """The gate of Yuan 2.0-M32, exactly `attention` without options: no balance loss, no drops.

    LFA belongs to the released model's self-attention (`gatelab.FilteredAttention`), not to its gate.
    """
    return attention(hidden_size, num_experts, top_k)
