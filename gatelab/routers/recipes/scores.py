"""Gates whose novelty is the score."""

from gatelab.routers.balance import SwitchLoss
from gatelab.routers.registry import recipe
from gatelab.routers.router import Router
from gatelab.routers.score import CosineScore, HadamardScore, MLPScore
from gatelab.routers.select import TopK
from gatelab.routers.weight import Renormalize


@recipe(
    "x-moe",
    source="X-MoE, arXiv 2204.09179, §3; sizes: Microsoft's Tutel",
    equation="z_i = exp(min(τ, ln 100)) · cos(P x, m_i);  p = softmax(z);  S = top-k of p;  w = p",
)
def x_moe(
    hidden_size: int,
    num_experts: int,
    top_k: int = 1,
    *,
    projection: int = 256,
    temperature: float = 0.5,
    switch_coefficient: float = 0.01,
) -> Router:
    """Cosine against expert vectors on a small sphere, so that hidden states do not collapse towards expert centroids.

    Deviations: P and τ as in Tutel; no capacity and no frozen gate for fine-tuning.
    Prefer it for many small experts, or where hidden states differ much in length.
    """
    return Router(
        score=CosineScore(hidden_size, num_experts, projection, temperature),
        select=TopK(top_k),
        balance=[SwitchLoss(switch_coefficient)],
    )


@recipe(
    "mlp",
    source="arXiv 2506.16419 (width and activation unverified)",
    equation="z = W₂ gelu(W₁ x);  p = softmax(z);  S = top-k of p;  w_i = p_i / Σ_S p",
)
def mlp(
    hidden_size: int, num_experts: int, top_k: int = 2, *, width: int | None = None, switch_coefficient: float = 0.01
) -> Router:
    """`topk-softmax` with a hidden layer of D/2 in the score; all else is held, to see what expressiveness buys.

    Prefer it when a linear gate cannot separate what the experts should; it costs about D/2E times as much.
    """
    return Router(
        score=MLPScore(hidden_size, num_experts, width),
        select=TopK(top_k),
        weight=Renormalize(),
        balance=[SwitchLoss(switch_coefficient)],
    )


@recipe(
    "hadamard",
    source="MLP-Hadamard of arXiv 2506.16419 (form unverified)",
    equation="z = W₃ (x ⊙ W₂ gelu(W₁ x));  p = softmax(z);  S = top-k of p;  w_i = p_i / Σ_S p",
)
def hadamard(hidden_size: int, num_experts: int, top_k: int = 2, *, switch_coefficient: float = 0.01) -> Router:
    """`topk-softmax` whose score lets an MLP gate the features of x before the experts see them.

    Quadratic in x, so normalise x before it. The paper reports sparse, structured routing.
    Prefer `mlp` unless features should be switched off altogether: this one is 2·D² parameters.
    """
    return Router(
        score=HadamardScore(hidden_size, num_experts),
        select=TopK(top_k),
        weight=Renormalize(),
        balance=[SwitchLoss(switch_coefficient)],
    )
