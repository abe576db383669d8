"""What experts stand for: which token ids and domains they serve, and which other experts they work with.

All take counts (of `count_by_label` and `co_activation`, added by `sum_counts`). V labels are token ids or domains.
Perfect balance fixes the value of none: a balanced gate may specialise fully (hash) or not at all (random).
"""

from __future__ import annotations

import torch
from torch import Tensor


def domain_specialization(assignments_VE: Tensor, tokens_V: Tensor) -> Tensor:
    """Share of a domain's tokens that use an expert, N_xi/N_x (OLMoE, arXiv 2409.02060, section 5.3).

    Args:
        assignments_VE: `(..., V, E)` N_xi, counts per domain and expert.
        tokens_V: `(..., V)` N_x, tokens per domain.

    Returns:
        `(..., V, E)` in [0, 1]. A row sums to the domain's mean number of experts per token; it is 0 where the domain
        has no token. Balanced routing that ignores the domain gives K/E everywhere.
    """
    tokens_V1 = tokens_V.double()[..., None]
    return torch.where(tokens_V1 > 0, assignments_VE.double() / tokens_V1, 0.0)


def vocabulary_specialization(assignments_VE: Tensor, tokens_V: Tensor, min_tokens: int = 10) -> Tensor:
    """Mean over token ids x of max_i N_xi/N_x: how firmly an id belongs to one expert (OLMoE, arXiv 2409.02060,
    section 5.4).

    The paper's curve over layers counts first choices of every id. Deviation: ids with fewer than `min_tokens` tokens
    are left out, because an id seen once scores 1 under any gate.

    Args:
        assignments_VE: `(..., V, E)` N_xi, counts per token id and expert.
        tokens_V: `(..., V)` N_x, tokens per id.
        min_tokens: tokens an id needs to take part, at least 1.

    Returns:
        `(...)` in [0, 1]; 1 when every id always uses some one expert, 0 when no id is frequent enough. Balanced
        routing that ignores the id tends to K/E, from above, as ids become frequent.

    Raises:
        ValueError: min_tokens below 1.
    """
    if min_tokens < 1:
        raise ValueError(f"min_tokens={min_tokens} must be at least 1: an id without tokens has no share")
    strongest_V = domain_specialization(assignments_VE, tokens_V).amax(-1)
    frequent_V = tokens_V >= min_tokens
    return strongest_V.where(frequent_V, 0.0).sum(-1) / frequent_V.sum(-1).clamp(min=1)


def mutual_information(assignments_VE: Tensor) -> Tensor:
    """I = Σ_xi p_xi ln(p_xi/(p_x p_i)) with p_xi = N_xi/ΣN, in nats (Shannon 1948): between expert and token for counts
    per token id, between expert and domain for counts per domain.

    The plug-in estimate: where label and expert are independent it comes out near (V − 1)(E − 1)/(2ΣN), not 0
    (Miller 1955, "Note on the bias of information estimates").

    Args:
        assignments_VE: `(..., V, E)` counts per label and expert.

    Returns:
        `(...)` in [0, min(ln V, ln E)]: 0 when counts factorise and when there are none; the entropy of the load when
        the label decides the expert (K = 1).
    """
    counts_VE = assignments_VE.double()
    total = counts_VE.sum((-2, -1), keepdim=True)
    joint_VE = torch.where(total > 0, counts_VE / total, 0.0)
    label = torch.special.entr(joint_VE.sum(-1)).sum(-1)
    expert = torch.special.entr(joint_VE.sum(-2)).sum(-1)
    both = torch.special.entr(joint_VE).sum((-2, -1))
    return (label + expert - both).clamp(min=0.0)  # rounding may leave −1e-16


def co_activation_rate(pairs_EE: Tensor) -> Tensor:
    """Of the tokens that use expert i, the share that also use j, N_ij/N_ii (OLMoE, arXiv 2409.02060, section 5.2).

    Args:
        pairs_EE: `(..., E, E)` N_ij of `co_activation`, n_i on the diagonal.

    Returns:
        `(..., E, E)` in [0, 1], row i given i, not symmetric. The diagonal is 1; the row of a dead expert is 0.
        Uniformly random choices give (K − 1)/(E − 1) off the diagonal.
    """
    uses_E1 = pairs_EE.double().diagonal(dim1=-2, dim2=-1)[..., None]
    return torch.where(uses_E1 > 0, pairs_EE.double() / uses_E1, 0.0)
