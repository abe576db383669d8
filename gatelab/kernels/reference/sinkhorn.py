"""Rows and columns scaled in turn, in the logarithm."""

import math

import torch
from torch import Tensor


def sinkhorn(scores: Tensor, *, iterations: int = 16, token_mask: Tensor | None = None) -> Tensor:
    """See `gatelab.kernels.sinkhorn`."""
    T, E = scores.shape
    lowest = torch.finfo(scores.dtype).min
    log_row, log_column = -math.log(max(T, 1)), -math.log(E)
    if token_mask is not None:
        scores = scores.masked_fill(~token_mask[:, None], 0)
        log_row = torch.where(token_mask, -token_mask.sum().clamp(min=1).log(), -torch.inf)[:, None]
    row, column = scores.new_zeros(T, 1), scores.new_zeros(1, E)
    for _ in range(iterations):
        row = log_row - (scores + column).logsumexp(dim=1, keepdim=True)
        # Clamped because without a real token every column sums to 0.
        column = log_column - (scores + row).logsumexp(dim=0, keepdim=True).clamp(min=lowest)
    return scores + row + column
