"""How sure the gate is, and how many experts a token gets. Perfect balance fixes the value of none of these."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gatelab.bench.metrics.padding import real_rows


def _mean(values_T: Tensor) -> Tensor:
    return values_T.sum(-1) / max(values_T.shape[-1], 1)


def gate_entropy(probabilities_TE: Tensor, token_mask: Tensor | None = None) -> Tensor:
    """Mean over the real tokens of H(p_t) = −Σ_i p_ti ln p_ti, in nats (Shannon 1948).

    Args:
        probabilities_TE: `(..., T, E)`, rows that sum to 1.
        token_mask: `(T,)`, True = a real token.

    Returns:
        `(...)` in [0, ln E], 0 without real tokens. Perfect balance fixes no value: a sure gate (0) and an undecided
        one (ln E) can both be balanced.

    Raises:
        ValueError: the mask is not `(T,)`.
    """
    p_TE = real_rows(probabilities_TE.detach(), token_mask).double()
    return _mean(torch.special.entr(p_TE).sum(-1))


def top1_margin(probabilities_TE: Tensor, token_mask: Tensor | None = None) -> Tensor:
    """Mean over the real tokens of p_(1) − p_(2), the lead of the best expert over the second (the margin of Scheffer
    et al. 2001, "Active hidden Markov models for information extraction").

    Args:
        probabilities_TE: `(..., T, E)`, rows that sum to 1; with one expert the second counts as 0.
        token_mask: `(T,)`, True = a real token.

    Returns:
        `(...)` in [0, 1], 0 without real tokens. Perfect balance fixes no value.

    Raises:
        ValueError: the mask is not `(T,)`.
    """
    p_TE = real_rows(probabilities_TE.detach(), token_mask).double()
    if p_TE.shape[-1] == 1:
        return _mean(p_TE[..., 0])
    best_T, second_T = p_TE.topk(2, dim=-1).values.unbind(-1)
    return _mean(best_T - second_T)


class ExpertsPerToken(NamedTuple):
    """Fewest, mean and most experts of a real token."""

    min: Tensor
    mean: Tensor
    max: Tensor


def experts_per_token(topk_ids_TK: Tensor, token_mask: Tensor | None = None) -> ExpertsPerToken:
    """k_t = |{j : ids_tj ≥ 0}|: its minimum, mean and maximum over the real tokens.

    K for every token under dropless top-k; it varies under expert choice (Zhou et al. 2022, arXiv 2202.09368), top-p
    and drops. A minimum of 0 says that some token met no expert.

    Args:
        topk_ids_TK: `(..., T, K)` integer, distinct experts of each token, negative where none.
        token_mask: `(T,)`, True = a real token.

    Returns:
        min and max `(...)` int64, mean `(...)` float64, all in [0, E] and 0 without real tokens. Perfect balance fixes
        no value.

    Raises:
        ValueError: the mask is not `(T,)`.
    """
    k_T = (real_rows(topk_ids_TK, token_mask) >= 0).sum(-1)
    if k_T.shape[-1] == 0:
        k_T = k_T.new_zeros(*k_T.shape[:-1], 1)
    return ExpertsPerToken(k_T.amin(-1), _mean(k_T.double()), k_T.amax(-1))
