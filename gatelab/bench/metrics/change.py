"""How the routing of the same tokens moves: towards the final checkpoint (saturation), from step to step (churn).

Perfect balance fixes the value of neither.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gatelab.bench.metrics.padding import real_rows


def _common_and_sizes(a_TK: Tensor, b_TJ: Tensor, token_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Σ_t |A_t ∩ B_t|, Σ_t |A_t|, Σ_t |B_t|, each `(...)` float64."""
    if a_TK.shape[:-1] != b_TJ.shape[:-1]:
        shapes = f"{tuple(a_TK.shape)} and {tuple(b_TJ.shape)}"
        raise ValueError(
            f"the two topk_ids have shapes {shapes}, expected the same tokens: (..., T, K) and (..., T, J)"
        )
    a_TK, b_TJ = real_rows(a_TK, token_mask), real_rows(b_TJ, token_mask)
    common_TKJ = (a_TK[..., :, None] == b_TJ[..., None, :]) & (a_TK >= 0)[..., None]
    common, a, b = common_TKJ.flatten(-3), (a_TK >= 0).flatten(-2), (b_TJ >= 0).flatten(-2)
    return common.sum(-1).double(), a.sum(-1).double(), b.sum(-1).double()


def saturation(topk_ids_TK: Tensor, final_topk_ids_TK: Tensor, token_mask: Tensor | None = None) -> Tensor:
    """Router saturation Σ_t |A_t ∩ F_t|/Σ_t |F_t|: the share of the final checkpoint's choices that an earlier one
    already makes (OLMoE, arXiv 2409.02060, section 5.1, where every |F_t| is k).

    Args:
        topk_ids_TK: `(..., T, K)` integer, distinct experts of each token at the checkpoint, negative where none.
        final_topk_ids_TK: `(..., T, J)`, the same tokens at the final checkpoint. Slice both to their first k columns
            for the paper's saturation at k.
        token_mask: `(T,)`, True = a real token.

    Returns:
        `(...)` in [0, 1]; 1 when the routing is final, and when the final routing is empty. Balanced routings that know
        nothing of each other overlap by K/E.

    Raises:
        ValueError: the two do not cover the same tokens, or the mask is not `(T,)`.
    """
    common, _, final = _common_and_sizes(topk_ids_TK, final_topk_ids_TK, token_mask)
    return torch.where(final > 0, common / final, 1.0)


def churn(topk_ids_TK: Tensor, previous_topk_ids_TK: Tensor, token_mask: Tensor | None = None) -> Tensor:
    """Share of the assignments that only one of two steps has, Σ_t |A_t △ B_t|/Σ_t (|A_t| + |B_t|).

    With K experts per token it is the share of choices replaced, 1 − Σ_t |A_t ∩ B_t|/(KT), for K = 1 the routing
    fluctuation of StableMoE (arXiv 2204.08396). The symmetric form is ours, for gates whose number of experts varies.

    Args:
        topk_ids_TK: `(..., T, K)` integer, distinct experts of each token now, negative where none.
        previous_topk_ids_TK: `(..., T, J)`, the same tokens one step earlier.
        token_mask: `(T,)`, True = a real token.

    Returns:
        `(...)` in [0, 1]; 0 when nothing moved, and when both are empty. Balanced routings that know nothing of each
        other give 1 − K/E.

    Raises:
        ValueError: the two do not cover the same tokens, or the mask is not `(T,)`.
    """
    common, now, before = _common_and_sizes(topk_ids_TK, previous_topk_ids_TK, token_mask)
    return torch.where(now + before > 0, (now + before - 2 * common) / (now + before), 0.0)
