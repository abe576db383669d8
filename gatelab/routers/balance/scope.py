"""Over which tokens a balance loss counts its load: a micro-batch, each sequence, or all ranks together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from gatelab.routers.context import Context

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Scope = Literal["micro-batch", "sequence", "global-batch"]


def check_scope(scope: str) -> None:
    """Raise ValueError unless `scope` is known."""
    if scope not in get_args(Scope):
        raise ValueError(f"scope={scope!r} is unknown; choose one of {', '.join(get_args(Scope))}")


def load_and_probability(ctx: Context, scope: str, process_group: ProcessGroup | None = None) -> tuple[Tensor, Tensor]:
    """What a balance loss multiplies, row by row.

    Args:
        ctx: a forward whose selection is made.
        scope: `micro-batch` and `global-batch` give one row (G = 1), `sequence` one per sequence (G = B).
        process_group: the ranks of `global-batch`; None = all ranks, and this one alone where nothing is distributed.

    Returns:
        f (G, E), each expert's share of all requested assignments, and P (G, E), its mean probability over real
        tokens; either sums to 1 over E, or to 0 in a row without real tokens. Only P has a gradient.
    """
    if scope == "sequence":
        B, S = ctx.shape
        ids_TJ = ctx.selection.ids
        load_GE = counts(ids_TJ.reshape(B, S * ids_TJ.shape[1]), ctx.num_experts)
        probabilities_BSE = ctx.probabilities.view(B, S, ctx.num_experts)
        if ctx.token_mask is None:
            mean_GE = probabilities_BSE.sum(1) / max(S, 1)
        else:
            total_GE = torch.where(ctx.token_mask[..., None], probabilities_BSE, 0).sum(1)
            mean_GE = total_GE / ctx.token_mask.sum(1, keepdim=True).clamp(min=1)
    else:
        load_GE = ctx.requested[None].to(ctx.probabilities.dtype)
        mean_GE = ctx.mean(ctx.probabilities)[None]
        if scope == "global-batch" and ctx.training:  # in evaluation the other ranks may not be there to answer
            load_GE = summed_over_ranks(load_GE, process_group)
    return load_GE / load_GE.sum(1, keepdim=True).clamp(min=1), mean_GE


def mean_over_sequences(values_G: Tensor, ctx: Context) -> Tensor:
    """The mean of (G,) values over the rows that hold a real token, 0 if none does."""
    if values_G.shape[0] == 1:
        return values_G.view(())
    if ctx.token_mask is None:
        return values_G.sum() / max(values_G.shape[0], 1)
    real_G = ctx.token_mask.any(1)
    return torch.where(real_G, values_G, 0).sum() / real_G.sum().clamp(min=1)


def counts(ids_GN: Tensor, num_bins: int) -> Tensor:
    """(G, num_bins) float32, how often each id stands in a row; -1 is not counted."""
    found = torch.zeros(ids_GN.shape[0], num_bins + 1, device=ids_GN.device)
    bins_GN = torch.where(ids_GN >= 0, ids_GN, num_bins)
    return found.scatter_add(1, bins_GN, torch.ones_like(bins_GN, dtype=found.dtype))[:, :num_bins]


def summed_over_ranks(load: Tensor, process_group: ProcessGroup | None) -> Tensor:
    """The sum over the ranks of `process_group`, or `load` itself where nothing is distributed."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return load
    load = load.clone()
    dist.all_reduce(load, group=process_group)
    return load
