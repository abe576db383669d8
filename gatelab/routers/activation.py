"""From raw logits to scores."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]


def softmax(logits_TE: Tensor) -> Tensor:
    """Rows that sum to 1."""
    return logits_TE.softmax(dim=-1)


def none(logits_TE: Tensor) -> Tensor:
    """The logits themselves."""
    return logits_TE


ACTIVATIONS: dict[str, Activation] = {"softmax": softmax, "sigmoid": torch.sigmoid, "none": none, "relu": F.relu}


def resolve_activation(activation: str | Activation) -> Activation:
    """The activation of that name; a callable (T, E) -> (T, E) is taken as it is.

    Raises:
        ValueError: no such name.
    """
    if callable(activation):
        return activation
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)} or a callable")
    return ACTIVATIONS[activation]


def probabilities(activation: Activation, logits_TE: Tensor, scores_TE: Tensor) -> Tensor:
    """(T, E) rows that sum to 1, for losses: the softmax, or non-negative scores over their sum (DeepSeek-V3, §2.1.2).

    A row of scores that are all 0 (ReLU) stays 0.
    """
    if activation is softmax:
        return scores_TE
    if activation is none:
        return logits_TE.softmax(dim=-1)
    return scores_TE / scores_TE.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(scores_TE.dtype).tiny)
