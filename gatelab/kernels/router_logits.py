"""The score of most gates: one matrix product."""

import torch
from torch import Tensor

from gatelab.kernels.backend import implementation


def router_logits(
    hidden_TD: Tensor, weight_ED: Tensor, bias_E: Tensor | None = None, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """z = x Wᵀ + b, computed in `dtype`, also under autocast.

    Args:
        hidden_TD: (T, D), any float dtype; its gradient has the same.
        weight_ED: (E, D), any float dtype.
        bias_E: (E,), any float dtype, or None.
        dtype: what all three are cast to.

    Returns:
        (T, E) in `dtype`.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    if hidden_TD.ndim != 2 or weight_ED.ndim != 2 or hidden_TD.shape[1] != weight_ED.shape[1]:
        shapes = f"{tuple(hidden_TD.shape)} and {tuple(weight_ED.shape)}"
        raise ValueError(f"hidden_TD and weight_ED have shapes {shapes}; pass (T, D) and (E, D)")
    if bias_E is not None and bias_E.shape != weight_ED.shape[:1]:
        raise ValueError(f"bias_E has shape {tuple(bias_E.shape)}; pass ({weight_ED.shape[0]},), one number per expert")
    return implementation("router_logits", hidden_TD.device.type)(hidden_TD, weight_ED, bias_E, dtype=dtype)
