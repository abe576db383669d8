"""DeepSeek's gates and what grew out of them."""

from torch import Tensor

from gatelab.routers.balance import CommunicationLoss, DeviceLoss, SignBias, SwitchLoss
from gatelab.routers.checks import check_positive
from gatelab.routers.registry import recipe
from gatelab.routers.router import Router
from gatelab.routers.score import LinearScore
from gatelab.routers.select import GroupLimitedTopK, TopK, fit_groups, hash_table
from gatelab.routers.weight import Renormalize, Scale


@recipe(
    "deepseek-moe",
    source="DeepSeekMoE, arXiv 2401.06066, §3; released 16B",
    equation="p = softmax(W x);  S = top-k of p;  w = p;  loss per sequence",
)
def deepseek_moe(
    hidden_size: int,
    num_experts: int,
    top_k: int = 6,
    *,
    switch_coefficient: float = 0.001,
    device_coefficient: float = 0.0,
    num_groups: int = 1,
) -> Router:
    """Many small experts, 6 of 64, beside two shared ones; not renormalised.

    The 145B model adds a device loss (`device_coefficient=0.05` over `num_groups` devices, `switch_coefficient=0.003`).
    Prefer it as the plain fine-grained gate; the shared experts are the layer's.
    """
    return Router(
        score=LinearScore(hidden_size, num_experts),
        select=TopK(top_k),
        balance=[SwitchLoss(switch_coefficient, "sequence"), DeviceLoss(device_coefficient, num_experts, num_groups)],
    )


@recipe(
    "deepseek-v2",
    source="DeepSeek-V2, arXiv 2405.04434, §2.2; released configuration",
    equation="p = softmax(W x);  the 3 of 8 groups with the largest p;  S = top-k of p within;  w = 16 p",
)
def deepseek_v2(
    hidden_size: int,
    num_experts: int,
    top_k: int = 6,
    *,
    num_groups: int | None = None,
    keep_groups: int | None = None,
    scale: float = 16.0,
    switch_coefficient: float = 0.003,
    device_coefficient: float = 0.05,
    communication_coefficient: float = 0.02,
) -> Router:
    """6 of 160 experts on at most 3 of 8 devices, with three losses: experts, devices, and what devices receive.

    Groups default to the published ones, clipped to what E and k allow. Deviation: the paper drops the least sure
    tokens of an overfull device in training; here nothing is dropped (`Capacity` can wrap the selection).
    Prefer group limits when experts sit on several machines; on one they only restrict the choice.
    """
    num_groups, keep_groups = _groups(num_experts, top_k, num_groups, keep_groups, published=(8, 3))
    return Router(
        score=LinearScore(hidden_size, num_experts),
        select=GroupLimitedTopK(top_k, num_experts, num_groups, keep_groups, by="max"),
        weight=Scale(scale),
        balance=[
            SwitchLoss(switch_coefficient, "sequence"),
            DeviceLoss(device_coefficient, num_experts, num_groups),
            CommunicationLoss(communication_coefficient, num_experts, num_groups, keep_groups),
        ],
    )


@recipe(
    "deepseek-v3",
    source="DeepSeek-V3, arXiv 2412.19437, §2.1.2 and §4.2; released code",
    equation="s = σ(W x);  4 of 8 groups by their two best s + b;  S = top-k of s + b within;  w_i = 2.5 s_i / Σ_S s",
)
def deepseek_v3(
    hidden_size: int,
    num_experts: int,
    top_k: int = 8,
    *,
    num_groups: int | None = None,
    keep_groups: int | None = None,
    scale: float = 2.5,
    bias_rate: float = 0.001,
    switch_coefficient: float = 0.0001,
) -> Router:
    """8 of 256 experts; a bias that only selects keeps the load even, a tiny loss per sequence guards the rest.

    b moves by ±0.001 once per step (0 in the last 500 of 14,800 billion tokens). Probabilities of the loss are s over
    its sum. Groups default to the published ones, clipped to what E and k allow.
    Prefer it to a loss alone: the main loss's gradient stays clean. At logits beyond ±17, σ is 0 or 1 in float32 and
    the choice is among ties.
    """
    num_groups, keep_groups = _groups(num_experts, top_k, num_groups, keep_groups, published=(8, 4))
    return Router(
        score=LinearScore(hidden_size, num_experts),
        activation="sigmoid",
        select=GroupLimitedTopK(top_k, num_experts, num_groups, keep_groups, by="two-best"),
        weight=[Renormalize(eps=1e-20), Scale(scale)],
        balance=[SignBias(num_experts, bias_rate), SwitchLoss(switch_coefficient, "sequence")],
    )


@recipe(
    "kimi-k2",
    source="Kimi K2, arXiv 2507.20534, §2.3; released configuration",
    equation="s = σ(W x);  S = top-k of s + b;  w_i = 2.827 s_i / Σ_S s",
)
def kimi_k2(
    hidden_size: int,
    num_experts: int,
    top_k: int = 8,
    *,
    scale: float = 2.827,
    bias_rate: float = 0.001,
    switch_coefficient: float = 0.001,
) -> Router:
    """DeepSeek-V3's gate over 384 experts without groups.

    Bias rate and sequence-loss coefficient are the released configuration's (`noaux_tc`, `aux_loss_alpha`); the report
    does not name them (unverified).
    Prefer it to `deepseek-v3` wherever experts are not spread over machines.
    """
    return Router(
        score=LinearScore(hidden_size, num_experts),
        activation="sigmoid",
        select=TopK(top_k),
        weight=[Renormalize(eps=1e-20), Scale(scale)],
        balance=[SignBias(num_experts, bias_rate), SwitchLoss(switch_coefficient, "sequence")],
    )


@recipe(
    "deepseek-v4",
    source="DeepSeek-V4, arXiv 2606.19348, §2.1; released configuration of V4-Flash and transformers' code",
    equation="s = √softplus(W x);  S = top-k of s + b (first 3 layers: a table by token id);  w_i = 1.5 s_i / Σ_S s",
)
def deepseek_v4(
    hidden_size: int,
    num_experts: int,
    top_k: int = 6,
    *,
    hashed: bool = False,
    vocab_size: int = 129280,
    table: Tensor | None = None,
    scale: float = 1.5,
    bias_rate: float = 0.001,
    switch_coefficient: float = 0.0001,
) -> Router:
    """6 of 256 experts, scores that do not saturate, no groups; the first three layers choose by token id.

    `hashed=True` is such a layer: a frozen table (V, K), random over `vocab_size` ids unless `table` gives it, while
    the gate's own scores still weigh; it needs `token_ids` and no balancing. Bias rate and coefficient are V3's
    (unverified).
    Prefer √softplus to σ where logits grow large: σ ties, the root does not.
    """
    score = LinearScore(hidden_size, num_experts)
    weight = [Renormalize(eps=1e-20), Scale(scale)]
    if hashed:
        select = hash_table(num_experts, top_k, vocab_size, table=table)
        return Router(score=score, activation="sqrt-softplus", select=select, weight=weight)
    return Router(
        score=score,
        activation="sqrt-softplus",
        select=TopK(top_k),
        weight=weight,
        balance=[SignBias(num_experts, bias_rate), SwitchLoss(switch_coefficient, "sequence")],
    )


def _groups(
    num_experts: int, top_k: int, num_groups: int | None, keep_groups: int | None, published: tuple[int, int]
) -> tuple[int, int]:
    """What the caller set, and the published numbers, clipped, for the rest."""
    check_positive(num_groups=num_groups, keep_groups=keep_groups)
    groups, keep = fit_groups(num_experts, top_k, num_groups or published[0], keep_groups or published[1])
    return num_groups or groups, keep_groups or keep
