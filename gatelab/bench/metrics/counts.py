"""Counts, the only thing that may be summed over batches and ranks; every ratio comes after."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from gatelab.bench.metrics.padding import real_rows


def _check_below(name: str, ids: Tensor, size_name: str, size: int) -> None:
    largest = int(ids.max()) if ids.numel() else -1
    if largest >= size:
        raise ValueError(f"{name} contains {largest}, expected ids below {size_name}={size} (negative = none)")


def tokens_per_expert(topk_ids_TK: Tensor, num_experts: int, token_mask: Tensor | None = None) -> Tensor:
    """Assignments to each expert, n_i = Σ_t [i ∈ ids_t].

    Args:
        topk_ids_TK: `(..., T, K)` integer, distinct experts of each token, negative where none.
        num_experts: E.
        token_mask: `(T,)`, True = a real token.

    Returns:
        `(..., E)` int64 in [0, T]; KT/E everywhere at perfect balance.

    Raises:
        ValueError: an id of E or more, or a mask that is not `(T,)`.
    """
    ids_TK = real_rows(topk_ids_TK, token_mask).long()
    _check_below("topk_ids", ids_TK, "num_experts", num_experts)
    leading = ids_TK.shape[:-2]
    # one bincount for all leading rows, each with an extra bin in front for the negative ids
    bins = num_experts + 1
    offset = torch.arange(leading.numel(), device=ids_TK.device).view(*leading, 1, 1) * bins
    n = torch.bincount((offset + 1 + ids_TK.clamp(min=-1)).flatten(), minlength=leading.numel() * bins)
    return n.view(*leading, bins)[..., 1:]


class LabelCounts(NamedTuple):
    """Counts per label (a token id or a domain); sum each field over batches before taking a ratio."""

    assignments: Tensor
    """`(V, E)` int64, N_xi: assignments of tokens with label x to expert i."""
    tokens: Tensor
    """`(V,)` int64, N_x: real tokens with label x, those without an expert included."""


def count_by_label(
    labels_T: Tensor, topk_ids_TK: Tensor, *, num_labels: int, num_experts: int, token_mask: Tensor | None = None
) -> LabelCounts:
    """Which labels went to which experts, N_xi and N_x of OLMoE (arXiv 2409.02060, sections 5.3 and 5.4).

    It takes V·E counters: for a large vocabulary pass the inverse of `torch.unique(token_ids, return_inverse=True)`.

    Args:
        labels_T: `(T,)` integer, a token id or a domain per token; tokens with a negative label are left out.
        topk_ids_TK: `(T, K)` integer, distinct experts of each token, negative where none. Pass the first k columns for
            OLMoE's specialisation at k.
        num_labels: V.
        num_experts: E.
        token_mask: `(T,)`, True = a real token.

    Raises:
        ValueError: a label of V or more, an id of E or more, or shapes that do not share T.
    """
    if topk_ids_TK.ndim != 2 or labels_T.shape != topk_ids_TK.shape[:1]:
        shapes = f"labels has shape {tuple(labels_T.shape)} and topk_ids {tuple(topk_ids_TK.shape)}"
        raise ValueError(f"{shapes}, expected (T,) and (T, K)")
    labels_T1 = real_rows(labels_T[:, None], token_mask).long()
    ids_TK = real_rows(topk_ids_TK, token_mask).long()
    _check_below("labels", labels_T1, "num_labels", num_labels)
    _check_below("topk_ids", ids_TK, "num_experts", num_experts)
    counted_TK = (labels_T1 >= 0) & (ids_TK >= 0)
    cells_N = (labels_T1 * num_experts + ids_TK)[counted_TK]
    assignments = torch.bincount(cells_N, minlength=num_labels * num_experts).view(num_labels, num_experts)
    return LabelCounts(assignments, torch.bincount(labels_T1[labels_T1 >= 0], minlength=num_labels))


def co_activation(topk_ids_TK: Tensor, num_experts: int, token_mask: Tensor | None = None) -> Tensor:
    """Tokens that use experts i and j together, N_ij = Σ_t [i ∈ ids_t][j ∈ ids_t].

    OLMoE, arXiv 2409.02060, section 5.2. All K(K − 1)/2 pairs of a token count; the paper's released script
    (run_moe_analysis.py) counts only the K − 1 pairs of neighbours in the order of choice.

    Args:
        topk_ids_TK: `(..., T, K)` integer, distinct experts of each token, negative where none.
        num_experts: E.
        token_mask: `(T,)`, True = a real token.

    Returns:
        `(..., E, E)` int64 in [0, T], symmetric, n_i on the diagonal; `co_activation_rate` divides by it. Perfect
        balance fixes the diagonal only, at KT/E.

    Raises:
        ValueError: an id of E or more, or a mask that is not `(T,)`.
    """
    ids_TK = real_rows(topk_ids_TK, token_mask).long()
    _check_below("topk_ids", ids_TK, "num_experts", num_experts)
    # column 0 takes the negative ids; float64 because a float32 product stops counting at 2^24 tokens
    uses = torch.zeros(*ids_TK.shape[:-1], num_experts + 1, dtype=torch.float64, device=ids_TK.device)
    uses_TE = uses.scatter_(-1, ids_TK.clamp(min=-1) + 1, 1.0)[..., 1:]
    return (uses_TE.mT @ uses_TE).long()


def sum_counts(counts: Iterable[Tensor], group: dist.ProcessGroup | None = None) -> Tensor:
    """Add counts over batches, then over ranks: every global figure is a ratio of these sums.

    `max_violation(counts_BE)` is MaxVio per batch, `max_violation(sum_counts(counts_BE))` the global one. Add batches,
    never layers.

    Args:
        counts: tensors of one shape, one per batch: a list, a generator, or a tensor stacked along its first axis.
        group: the ranks to add over, each of which must call; None = this process alone.

    Returns:
        A new tensor, shaped like one entry: int64 for integer counts, float64 for fractional ones.

    Raises:
        ValueError: there is no batch.
    """
    total = sum(n.detach().double() if n.is_floating_point() else n.long() for n in counts)
    if not isinstance(total, Tensor):
        raise ValueError("counts is empty: pass at least one batch, zeros where a rank had no tokens")
    if group is not None:
        dist.all_reduce(total, group=group)
    return total
