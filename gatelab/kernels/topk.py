"""Choosing experts."""

from torch import Tensor

from gatelab.kernels.backend import implementation


def topk(scores_TE: Tensor, k: int) -> Tensor:
    """The k experts with the largest score of each token.

    Every backend answers what `torch.topk` does, whose choice among equal scores follows no rule but is always the
    same: transformers chooses by it too.

    Args:
        scores_TE: (T, E), any float dtype.
        k: 1 to E.

    Returns:
        (T, k) int64, the largest first.
    """
    return implementation("topk", scores_TE.device.type)(scores_TE, k)
