"""The gate in a few lines: the oracle."""

import torch
from torch import Tensor
from torch.nn import functional as F


def topk_gate(
    logits_TE: Tensor,
    top_k: int,
    *,
    activation: str = "softmax",
    select_on: str = "scores",
    bias: Tensor | None = None,
    num_groups: int = 1,
    keep_groups: int = 1,
    groups_by: str = "max",
    renormalize: bool = False,
    scale: float = 1.0,
    token_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `gatelab.kernels.topk_gate`."""
    z_TE = logits_TE.to(torch.promote_types(logits_TE.dtype, torch.float32))
    if token_mask is not None:
        z_TE = z_TE.masked_fill(~token_mask[:, None], 0)
    s_TE = _ACTIVATIONS[activation](z_TE)
    by_TE = (s_TE if select_on == "scores" else z_TE).detach()
    if bias is not None:
        by_TE = by_TE + bias.to(by_TE.dtype)
    if num_groups > 1:
        by_TE = _limited(by_TE.unflatten(1, (num_groups, -1)), keep_groups, 1 if groups_by == "max" else 2)
    ids_TK = _best(by_TE, top_k)
    weights_TK = s_TE.gather(1, ids_TK)
    if renormalize:
        weights_TK = weights_TK / weights_TK.sum(dim=1, keepdim=True).clamp(min=1e-20)
    weights_TK, logsumexp_T = weights_TK * scale, z_TE.logsumexp(dim=1)
    real_TK = torch.ones_like(ids_TK)
    if token_mask is not None:
        real_TK = real_TK * token_mask[:, None]
        weights_TK, logsumexp_T = weights_TK * real_TK, logsumexp_T * token_mask
    counts_E = ids_TK.new_zeros(z_TE.shape[1]).index_add(0, ids_TK.flatten(), real_TK.flatten())
    return weights_TK, torch.where(real_TK > 0, ids_TK, -1), logsumexp_T, counts_E


_ACTIVATIONS = {
    "softmax": lambda z_TE: z_TE.softmax(dim=1),
    "sigmoid": torch.sigmoid,
    "sqrt-softplus": lambda z_TE: F.softplus(z_TE).clamp(min=torch.finfo(z_TE.dtype).tiny).sqrt(),
}


def _limited(by_TGe: Tensor, keep_groups: int, summands: int) -> Tensor:
    """(T, E) with −inf outside the best groups."""
    group_TG = by_TGe.topk(min(summands, by_TGe.shape[2]), dim=2).values.sum(2)
    closed_TG = torch.ones_like(group_TG, dtype=torch.bool).scatter(1, _best(group_TG, keep_groups), False)
    return by_TGe.masked_fill(closed_TG[:, :, None], -torch.inf).flatten(1)


def _best(by: Tensor, k: int) -> Tensor:
    """The ids of the k largest of each row; among equals the lower first, which `topk` does not promise."""
    return by.sort(dim=1, descending=True, stable=True).indices[:, :k]
