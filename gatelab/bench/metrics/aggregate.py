"""From layers and batches to one figure, without letting imbalances cancel."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class PerLayer(NamedTuple):
    """A metric layer by layer, with its mean and extremes; which extreme is the bad one depends on the metric."""

    values: Tensor
    """`(L,)` float64."""
    mean: Tensor
    min: Tensor
    max: Tensor


def per_layer(metric: Callable[[Tensor], Tensor], counts: Iterable[Tensor]) -> PerLayer:
    """Take the metric of each layer by itself, then summarise over layers.

    Never the metric of counts added or concatenated over layers: one layer's crowded expert then hides another's empty
    one (transformers #28255), and max and mean run over the wrong axis (vllm PR #39178).

    Args:
        metric: counts of one layer to a scalar: `max_violation`, or `functools.partial(padding_waste, block=128)`.
        counts: one tensor per layer, `(E,)` each (E may differ), or their stack `(L, E)`.

    Raises:
        ValueError: there is no layer, or the metric does not give a scalar.
    """
    figures = [metric(layer) for layer in counts]
    if not figures:
        raise ValueError("counts is empty: pass the counts of at least one layer")
    if figures[0].ndim:
        shape = tuple(figures[0].shape)
        raise ValueError(f"metric gave shape {shape} for a layer, expected a scalar: pass counts as (L, E)")
    values = torch.stack(figures).double()
    return PerLayer(values, values.mean(), values.amin(), values.amax())


def token_weighted_mean(means_B: Tensor, num_tokens_B: Tensor) -> Tensor:
    """The mean over all tokens from one mean per batch, Σ_b T_b m_b/Σ_b T_b.

    For `gate_entropy`, `top1_margin` and the mean of `experts_per_token`: batches differ in their real tokens.

    Args:
        means_B: `(B, ...)`, one mean per batch.
        num_tokens_B: `(B,)` real tokens of each.

    Returns:
        `(...)` float64 between the smallest and the largest mean; 0 without tokens.
    """
    weights_B = num_tokens_B.double() / num_tokens_B.sum().clamp(min=1)
    return torch.tensordot(weights_B, means_B.double(), dims=1)
