"""Sinkhorn's scaling of a score matrix to given marginals."""

import torch
from torch import Tensor

from gatelab.kernels.backend import implementation


def sinkhorn(scores: Tensor, *, iterations: int = 16, token_mask: Tensor | None = None) -> Tensor:
    """Logarithm of the plan that scales exp(scores) to rows of 1/T and columns of 1/E, T counting real tokens.

    Rows and columns are scaled in turn, rows first, so that the columns sum to 1/E to rounding and the rows nearly do.
    In the logarithm nothing overflows, and a row keeps its order where the plan itself would underflow to ties. The
    number of iterations is fixed: nothing waits for the device. Not differentiable; `scores` is not changed.

    Args:
        scores: (T, E), finite, any float dtype; computed in at least float32.
        iterations: how often rows and columns are scaled. What is missing shrinks by a constant factor each time, a
            factor that nears 1 as the scores' range within a row grows.
        token_mask: (T,), True (nonzero) = a real token. The others take no part; their rows are −inf.

    Returns:
        (T, E) in the dtype of the computation.

    Raises:
        ValueError: `scores` is not a floating (T, E) matrix with E > 0, `token_mask` does not fit, or `iterations` is
            below 1.

    Source: Sinkhorn and Knopp 1967; in a router S-BASE, Clark et al. 2022, arXiv 2202.01169, §B.2.1 (unverified).
    """
    if scores.ndim != 2 or not scores.is_floating_point() or scores.shape[1] == 0:
        raise ValueError(f"scores is {scores.dtype} of shape {tuple(scores.shape)}; pass a float (T, E) tensor, E > 0")
    if token_mask is not None and token_mask.shape != scores.shape[:1]:
        raise ValueError(f"token_mask has shape {tuple(token_mask.shape)}; pass ({scores.shape[0]},), True for real")
    if iterations < 1:
        raise ValueError(f"iterations={iterations} scales nothing; use at least 1")
    scores = scores.detach().to(torch.promote_types(scores.dtype, torch.float32))
    mask = None if token_mask is None else token_mask.to(torch.bool)
    return implementation("sinkhorn", scores.device.type)(scores, iterations=iterations, token_mask=mask)
