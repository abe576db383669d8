"""From raw logits to scores."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]


def softmax(logits_TE: Tensor) -> Tensor:
    """Rows that sum to 1."""
    return logits_TE.softmax(dim=-1)


def std_softmax(logits_TE: Tensor, scale: float = 1.0) -> Tensor:
    """softmax(λ (z − mean z)/std z) over the experts of each row, with the unbiased std; equal logits stay equal.

    Args:
        logits_TE: (T, E).
        scale: λ, the sharpness.

    Source: Skywork-MoE, arXiv 2406.06563, §4.1, equation 6. Equal logits would be 0/0 there.
    """
    centred_TE = logits_TE - logits_TE.mean(dim=-1, keepdim=True)
    variance_T1 = centred_TE.square().sum(dim=-1, keepdim=True) / max(logits_TE.shape[-1] - 1, 1)
    # Chosen before the root, whose gradient at 0 is infinite.
    return (scale * centred_TE * torch.where(variance_T1 > 0, variance_T1, 1).rsqrt()).softmax(dim=-1)


def sqrt_softplus(logits_TE: Tensor) -> Tensor:
    """√ln(1 + eᶻ): grows like √z, so no expert saturates (DeepSeek-V4).

    At least about 1e-19: below z = -87 the softplus leaves the normal float32 numbers, and the root's gradient the
    finite ones.
    """
    return F.softplus(logits_TE).clamp(min=torch.finfo(logits_TE.dtype).tiny).sqrt()


def none(logits_TE: Tensor) -> Tensor:
    """The logits themselves."""
    return logits_TE


ACTIVATIONS: dict[str, Activation] = {
    "softmax": softmax,
    "sigmoid": torch.sigmoid,
    "none": none,
    "relu": F.relu,
    "std-softmax": std_softmax,
    "sqrt-softplus": sqrt_softplus,
}


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
    if activation in (softmax, std_softmax):
        return scores_TE
    if activation is none:
        return logits_TE.softmax(dim=-1)
    return scores_TE / scores_TE.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(scores_TE.dtype).tiny)
