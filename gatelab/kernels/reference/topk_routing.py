"""From scores to a routing in a few lines: the oracle."""

import torch
from torch import Tensor

from gatelab.kernels.reference.group_by_expert import group_by_expert
from gatelab.kernels.reference.topk import topk


def topk_routing(
    scores_TE: Tensor,
    k: int,
    *,
    by_TE: Tensor | None = None,
    probabilities_TE: Tensor | None = None,
    weight: str = "score",
    eps: float = 0.0,
    scale: float = 1.0,
    token_mask: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """See `gatelab.kernels.topk_routing`."""
    T, E = scores_TE.shape
    ids_TK = topk(scores_TE if by_TE is None else by_TE, k)
    weights_TK = weigh(scores_TE, ids_TK, weight, eps, scale)
    p_TE = scores_TE if probabilities_TE is None else probabilities_TE
    real = max(T, 1)
    if token_mask is not None:
        ids_TK = torch.where(token_mask[:, None], ids_TK, -1)
        weights_TK = torch.where(token_mask[:, None], weights_TK, 0)
        p_TE = torch.where(token_mask[:, None], p_TE, 0)
        real = token_mask.sum().clamp(min=1)
    order, expert_offsets = group_by_expert(ids_TK, E)
    token_index, requested = order // k, expert_offsets.diff()
    load_E = requested / requested.sum().clamp(min=1).to(p_TE.dtype)
    return (
        weights_TK,
        ids_TK,
        token_index,
        order - token_index * k,
        weights_TK.flatten()[order],
        expert_offsets,
        requested,
        E * (load_E * p_TE.sum(0) / real).sum(),
    )


def weigh(scores_TE: Tensor, ids_TK: Tensor, weight: str, eps: float, scale: float) -> Tensor:
    """(T, K) weights of the chosen experts."""
    gates_TK = scores_TE.gather(1, ids_TK)
    if weight == "renormalize":
        gates_TK = gates_TK / (gates_TK.sum(dim=1, keepdim=True) + eps).clamp(min=1e-20)
    elif weight == "softmax":
        gates_TK = gates_TK.softmax(dim=1)
    elif weight == "sigmoid":
        gates_TK = gates_TK.sigmoid()
    return gates_TK * scale
