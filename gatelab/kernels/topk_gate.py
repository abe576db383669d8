"""The whole gate of most models: from router logits to weighted experts, in one pass over the logits."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gatelab.kernels.backend import implementation

ACTIVATIONS = ("softmax", "sigmoid", "sqrt-softplus")


class TopKGate(NamedTuple):
    """What `topk_gate` returns; floats in the dtype of the computation."""

    topk_weights: Tensor  # (T, K), differentiable
    topk_ids: Tensor  # (T, K) int64, in order of choice; −1 for a masked token
    logsumexp: Tensor  # (T,), differentiable: its square is the z-loss's
    tokens_per_expert: Tensor  # (E,) int64


def topk_gate(
    logits_TE: Tensor,
    top_k: int,
    *,
    activation: Literal["softmax", "sigmoid", "sqrt-softplus"] = "softmax",
    select_on: Literal["scores", "logits"] = "scores",
    bias: Tensor | None = None,
    num_groups: int = 1,
    keep_groups: int = 1,
    groups_by: Literal["max", "two-best"] = "max",
    renormalize: bool = False,
    scale: float = 1.0,
    token_mask: Tensor | None = None,
) -> TopKGate:
    """Scores s = activation(z), the k experts with the largest s + bias, and w = scale · s of those.

    Ties go to the lower expert id. Mixtral, Qwen3 and DBRX: softmax, `renormalize`. OLMoE, DeepSeekMoE: softmax.
    gpt-oss: softmax on logits, `renormalize` (the softmax over the chosen). Llama 4: sigmoid on logits. DeepSeek-V2:
    softmax, groups by max, `scale`. DeepSeek-V3: sigmoid, `bias`, groups by two-best, `renormalize`, `scale`;
    DeepSeek-V4: sqrt-softplus, `bias`.

    Args:
        logits_TE: (T, E), any float dtype; computed in at least float32.
        top_k: K.
        activation: √ln(1 + eᶻ) is `sqrt-softplus`, there at least 1e-19.
        select_on: whether the largest scores or the largest logits are chosen. They differ where scores saturate, and
            under a bias.
        bias: (E,), added to what is selected on, never to a weight; no gradient reaches it.
        num_groups: consecutive experts form groups of equal size, and a token uses only its `keep_groups` best.
        keep_groups: how many.
        groups_by: a group counts its largest score, or the sum of its two largest, bias included.
        renormalize: divide by the sum over the chosen (at least 1e-20) before `scale`.
        scale: of the weights.
        token_mask: (T,), True (nonzero) = a real token. The others get weights 0, ids −1, logsumexp 0, and no gradient.

    Returns:
        `topk_weights` (T, K), `topk_ids` (T, K), `logsumexp` (T,) over all E logits, `tokens_per_expert` (E,).

    Raises:
        ValueError: a shape or a name does not fit, `top_k` is not within 1…E, or the groups do not divide the experts
            or cannot hold `top_k`.

    Source: Shazeer et al. 2017, arXiv 1701.06538, §2.1; groups: DeepSeek-V2, arXiv 2405.04434, §2.2.2, and DeepSeek-V3,
    arXiv 2412.19437, §2.1.2; logsumexp: ST-MoE, arXiv 2202.08906, equation 5. Deviation: the papers leave ties open.
    """
    if logits_TE.ndim != 2 or not logits_TE.is_floating_point():
        raise ValueError(f"logits_TE is {logits_TE.dtype} of shape {tuple(logits_TE.shape)}; pass a float (T, E)")
    T, E = logits_TE.shape
    if not 1 <= top_k <= E:
        raise ValueError(f"top_k={top_k} does not fit the {E} experts of logits_TE; choose 1 to {E}")
    for name, value, names in (
        ("activation", activation, ACTIVATIONS),
        ("select_on", select_on, ("scores", "logits")),
        ("groups_by", groups_by, ("max", "two-best")),
    ):
        if value not in names:
            raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(names)}")
    if num_groups < 1 or E % num_groups:
        raise ValueError(f"num_groups={num_groups} does not divide the {E} experts of logits_TE; use a divisor")
    if not top_k <= keep_groups * (E // num_groups) <= E:
        raise ValueError(f"keep_groups={keep_groups} of {num_groups} groups of {E // num_groups} do not fit {top_k=}")
    if bias is not None and bias.shape != (E,):
        raise ValueError(f"bias has shape {tuple(bias.shape)}; pass ({E},), one number per expert")
    if token_mask is not None and token_mask.shape != (T,):
        raise ValueError(f"token_mask has shape {tuple(token_mask.shape)}; pass ({T},), True for real")
    run = implementation("topk_gate", logits_TE.device.type)
    return TopKGate(
        *run(
            logits_TE,
            top_k,
            activation=activation,
            select_on=select_on,
            bias=None if bias is None else bias.detach(),
            num_groups=num_groups,
            keep_groups=keep_groups,
            groups_by=groups_by,
            renormalize=renormalize,
            scale=scale,
            token_mask=None if token_mask is None else token_mask.to(torch.bool),
        )
    )
