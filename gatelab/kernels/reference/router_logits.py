"""The linear score: the oracle."""

import torch
from torch import Tensor
from torch.nn import functional as F

from gatelab.kernels.precision import without_autocast


def router_logits(
    hidden_TD: Tensor, weight_ED: Tensor, bias_E: Tensor | None = None, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """See `gatelab.kernels.router_logits`."""
    with without_autocast(hidden_TD.device.type):
        bias_E = None if bias_E is None else bias_E.to(dtype)
        return F.linear(hidden_TD.to(dtype), weight_ED.to(dtype), bias_E)
