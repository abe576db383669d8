"""Gates over real experts and experts that cost nothing."""

from collections.abc import Sequence

from gatelab.routers.balance import HeterogeneousLoss, ProportionalBias
from gatelab.routers.registry import recipe
from gatelab.routers.router import Router
from gatelab.routers.score import LinearScore, PathwayScore
from gatelab.routers.select import TopK
from gatelab.routers.weight import Scale


@recipe(
    "moe-plus-plus",
    source="MoE++, Jin et al. 2024, arXiv 2410.07348, §3; released code",
    equation="z = W₂ tanh(W₁ x) + G z_previous;  p = softmax(z) over real and zero-computation experts;  top-k;  w = p",
    adds_experts=True,
)
def moe_plus_plus(
    hidden_size: int,
    num_experts: int,
    top_k: int = 2,
    *,
    zero_computation: Sequence[str] = ("constant", "constant", "identity", "zero"),
    coefficient: float = 0.01,
    tau: float = 0.75,
) -> Router:
    """Real experts beside zero, identity ("copy") and constant ones, and logits that carry over from layer to layer.

    `num_experts` counts the real experts; the others follow in the order of `zero_computation`, the same for the layer:
    `Experts(..., zero_computation=router.zero_computation)`. Hand on `previous=` for the gating residual. `tau` is the
    weight of zero-computation experts in the loss: smaller sends them more tokens.
    Deviations: no capacity (the paper drops beyond γ = 1.1 times the share τT/(τN + Z) of a real expert, T/(τN + Z) of
    the others); weights as in the paper's equation 1, where the released code zeroes the zero expert's weight,
    renormalises, and doubles the input.
    Prefer it when many tokens are easy: they leave the real experts' time to the others.
    """
    kinds = tuple(zero_computation)
    E = num_experts + len(kinds)
    return Router(
        score=PathwayScore(hidden_size, E),
        select=TopK(top_k),
        balance=[HeterogeneousLoss(coefficient, [1.0] * num_experts + [tau] * len(kinds))],
        zero_computation=kinds,
    )


@recipe(
    "longcat-flash",
    source="LongCat-Flash, arXiv 2509.01322, §2.1; transformers' LongcatFlashTopkRouter",
    equation="s = softmax(W x) over N real and Z identity experts;  top-k of s + b;  w = 6 s;  b follows the load",
    adds_experts=True,
)
def longcat_flash(
    hidden_size: int,
    num_experts: int,
    top_k: int = 12,
    *,
    num_identity: int | None = None,
    expected: float | None = None,
    bias_rate: float = 0.01,
    scale: float = 6.0,
) -> Router:
    """Every third expert is the identity, so the compute per token varies around an aim that a bias controller holds.

    `num_experts` counts the real experts (published: 512); `num_identity` follow (default half as many; published:
    256), of which the layer must know: `Experts(..., zero_computation=router.zero_computation)`. `top_k` may be as many
    as both together. `expected` real experts per token are aimed at (published: 8 of 12; default two thirds of `top_k`,
    or the nearest that `top_k` choices among so many of both can be). Weights are not renormalised. After gradient
    accumulation the bias is that of the whole batch exactly.
    Deviations: the device-level loss is left out; the controller's rate is not published (0.01
    moves the bias of an idle expert by a mean score, 1/768 as published, in about 100 steps).
    Prefer it for compute that follows the token with a fixed budget on average.
    """
    identities = max(num_experts // 2, 1) if num_identity is None else num_identity
    expected = min(max(top_k * 2 / 3, top_k - identities), num_experts) if expected is None else expected
    E = num_experts + identities
    return Router(
        score=LinearScore(hidden_size, E),
        select=TopK(top_k),
        weight=Scale(scale),
        balance=[ProportionalBias(E, top_k, bias_rate, num_experts, expected)],
        zero_computation=("identity",) * identities,
    )
