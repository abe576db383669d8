"""Load balance: how n_i, the assignments of one layer, spread over its experts.

n̄ is the mean of n_i and π_i = n_i/Σn. Where nothing was assigned, nothing is out of balance: a figure then has its
value at perfect balance, save `dead_experts`, which counts every expert. Counts may be fractional (soft routing).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def loads(tokens_per_expert_E: Tensor) -> Tensor:
    """Counts `(..., E)` as float64 without graph.

    Raises:
        ValueError: there is no expert.
    """
    if tokens_per_expert_E.ndim == 0 or tokens_per_expert_E.shape[-1] == 0:
        shape = tuple(tokens_per_expert_E.shape)
        raise ValueError(f"tokens_per_expert has shape {shape}, expected (..., E) with at least one expert")
    return tokens_per_expert_E.detach().double()


def _relative_loads(tokens_per_expert_E: Tensor) -> Tensor:
    """n_i/n̄, exactly 1 for every expert at perfect balance or without assignments."""
    n_E = loads(tokens_per_expert_E)
    mean = n_E.mean(-1, keepdim=True)
    return torch.where(mean > 0, n_E / mean, 1.0)


def _entropy(tokens_per_expert_E: Tensor) -> Tensor:
    shares_E = _relative_loads(tokens_per_expert_E) / tokens_per_expert_E.shape[-1]
    return torch.special.entr(shares_E).sum(-1)


def max_violation(tokens_per_expert_E: Tensor) -> Tensor:
    """MaxVio = max_i (n_i − n̄)/n̄, Wang et al. 2024 (arXiv 2408.15664, section 4.1).

    Per batch it takes the counts of each batch, global the `sum_counts` of all, which is never above the worst batch.

    Args:
        tokens_per_expert_E: `(..., E)` counts.

    Returns:
        `(...)` in [0, E − 1], 0 at perfect balance.
    """
    return imbalance(tokens_per_expert_E) - 1.0


def imbalance(tokens_per_expert_E: Tensor) -> Tensor:
    """Imbalance max_i n_i/n̄ = MaxVio + 1, the slowdown when experts run side by side and all wait for the last.

    Args:
        tokens_per_expert_E: `(..., E)` counts.

    Returns:
        `(...)` in [1, E], 1 at perfect balance.
    """
    return _relative_loads(tokens_per_expert_E).amax(-1)


def coefficient_of_variation(tokens_per_expert_E: Tensor) -> Tensor:
    """CV = σ/n̄ with the *population* σ = √(Σ_i (n_i − n̄)²/E), divided by E and not by E − 1 (Shazeer et al. 2017,
    arXiv 1701.06538, section 4 and appendix A, whose balance losses are its square).

    Args:
        tokens_per_expert_E: `(..., E)` counts.

    Returns:
        `(...)` in [0, √(E − 1)], 0 at perfect balance.
    """
    return _relative_loads(tokens_per_expert_E).std(-1, correction=0)


def gini(tokens_per_expert_E: Tensor) -> Tensor:
    """Gini index Σ_ij |n_i − n_j|/(2E²n̄) (Gini 1912).

    Computed as Σ_r (2r − E − 1) n_(r)/(E²n̄) over the loads in rising order, r = 1…E.

    Args:
        tokens_per_expert_E: `(..., E)` counts.

    Returns:
        `(...)` in [0, 1 − 1/E], 0 at perfect balance.
    """
    rising_E = _relative_loads(tokens_per_expert_E).sort(-1).values
    num_experts = rising_E.shape[-1]
    rank_E = torch.arange(1, num_experts + 1, dtype=rising_E.dtype, device=rising_E.device)
    return ((2 * rank_E - num_experts - 1) * rising_E).sum(-1) / num_experts**2


def load_entropy(tokens_per_expert_E: Tensor) -> Tensor:
    """Normalised entropy of the load, H(π)/ln E with H(π) = −Σ π_i ln π_i (Shannon 1948; Pielou's evenness).

    Args:
        tokens_per_expert_E: `(..., E)` counts.

    Returns:
        `(...)` in [0, 1], 1 at perfect balance, and 1 with a single expert (0/0).
    """
    entropy = _entropy(tokens_per_expert_E)
    num_experts = tokens_per_expert_E.shape[-1]
    return entropy / math.log(num_experts) if num_experts > 1 else torch.ones_like(entropy)


def effective_experts(tokens_per_expert_E: Tensor) -> Tensor:
    """exp H(π): how many equally loaded experts have this entropy (perplexity; Hill number of order 1, Hill 1973).

    Args:
        tokens_per_expert_E: `(..., E)` counts.

    Returns:
        `(...)` in [1, E], E at perfect balance.
    """
    return _entropy(tokens_per_expert_E).exp()


def dead_experts(tokens_per_expert_E: Tensor, threshold: float = 0.0) -> Tensor:
    """Number of experts with n_i ≤ threshold·n̄; the default counts those that got nothing at all.

    The term is the field's, the threshold relative to the mean is ours, so that the count does not depend on T.

    Args:
        tokens_per_expert_E: `(..., E)` counts.
        threshold: share of the mean load up to which an expert is dead, in [0, 1).

    Returns:
        `(...)` int64 in [0, E], 0 at perfect balance, E where nothing was assigned.

    Raises:
        ValueError: threshold outside [0, 1): at 1 a perfectly balanced layer would be dead.
    """
    if not 0.0 <= threshold < 1.0:
        raise ValueError(f"threshold={threshold} must be in [0, 1): a share of the mean load, 0 = no assignment at all")
    n_E = loads(tokens_per_expert_E)
    return (n_E <= threshold * n_E.mean(-1, keepdim=True)).sum(-1)


def coverage(tokens_per_expert_E: Tensor) -> Tensor:
    """Share of the assignments that fall on the m busiest experts, m = 1…E: Σ_{r ≤ m} π_(r) over the loads in falling
    order (the Lorenz curve, Lorenz 1905, from its upper end).

    What a cache of m experts would serve if it held the right ones.

    Args:
        tokens_per_expert_E: `(..., E)` counts.

    Returns:
        `(..., E)` rising to 1; m/E at perfect balance.
    """
    shares_E = _relative_loads(tokens_per_expert_E) / tokens_per_expert_E.shape[-1]
    return shares_E.sort(-1, descending=True).values.cumsum(-1)
