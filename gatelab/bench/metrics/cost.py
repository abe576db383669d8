"""What an uneven load costs: dropped assignments, padded rows, waiting devices."""

from __future__ import annotations

import torch
from torch import Tensor

from gatelab.bench.metrics.load import imbalance, loads


def drop_rate(requested_E: Tensor, tokens_per_expert_E: Tensor) -> Tensor:
    """Share of the wanted assignments that were dropped, 1 − Σ n_i/Σ requested_i (Switch Transformer, arXiv 2101.03961,
    section 2.2).

    Args:
        requested_E: `(..., E)` assignments wanted before any drop.
        tokens_per_expert_E: `(..., E)` assignments kept.

    Returns:
        `(...)` in [0, 1]; 0 at perfect balance while the capacity is at least n̄, 0 where nothing was requested.

    Raises:
        ValueError: more kept than requested, as when the two are swapped.
    """
    requested, kept = loads(requested_E).sum(-1), loads(tokens_per_expert_E).sum(-1)
    if (kept > requested).any():
        raise ValueError("tokens_per_expert sums to more than requested: pass the counts before any drop first")
    return torch.where(requested > 0, (requested - kept) / requested, 0.0)


def padding_waste(tokens_per_expert_E: Tensor, block: int) -> Tensor:
    """Share of rows computed for nothing when each expert's rows are rounded up to whole blocks,
    1 − Σ n_i/Σ block·⌈n_i/block⌉ (the blocks of MegaBlocks, arXiv 2211.15841).

    Args:
        tokens_per_expert_E: `(..., E)` counts.
        block: rows per block, at least 1.

    Returns:
        `(...)` in [0, 1 − 1/block] for whole counts; 0 at perfect balance if block divides n̄, 0 without assignments.

    Raises:
        ValueError: block below 1.
    """
    if block < 1:
        raise ValueError(f"block={block} must be at least 1 row")
    n_E = loads(tokens_per_expert_E)
    computed = ((n_E / block).ceil() * block).sum(-1)
    return torch.where(computed > 0, (computed - n_E.sum(-1)) / computed, 0.0)


def straggler_factor(tokens_per_expert_E: Tensor, num_devices: int) -> Tensor:
    """Largest device load over the mean device load, when G devices hold E/G consecutive experts each.

    The imbalance of expert parallelism (GShard, arXiv 2006.16668), where every device waits for the fullest. For
    another placement permute the experts first.

    Args:
        tokens_per_expert_E: `(..., E)` counts.
        num_devices: G, a divisor of E.

    Returns:
        `(...)` in [1, G], 1 at perfect balance; G = E gives `imbalance`, G = 1 gives 1.

    Raises:
        ValueError: num_devices does not divide E.
    """
    n_E = loads(tokens_per_expert_E)
    num_experts = n_E.shape[-1]
    if num_devices < 1 or num_experts % num_devices:
        raise ValueError(f"num_devices={num_devices} must divide the {num_experts} experts of tokens_per_expert")
    return imbalance(n_E.unflatten(-1, (num_devices, -1)).sum(-1))
