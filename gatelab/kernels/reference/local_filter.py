"""The filter as four matrix products on the sequence and its shifted self."""

import torch
from torch import Tensor
from torch.nn import functional as F


def local_filter(
    x_BSD: Tensor,
    first: Tensor,
    first_bias: Tensor,
    second: Tensor,
    second_bias: Tensor,
    norm_weight: Tensor,
    *,
    eps: float = 1e-6,
    token_mask: Tensor | None = None,
    history: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """See `gatelab.kernels.local_filter`."""
    x = _masked(x_BSD, token_mask)
    x_before, o1_before = history if history is not None else (None, None)
    o1 = F.linear(_shifted(x, x_before), first[0]) + F.linear(x, first[1], first_bias)
    o1 = _masked(o1, token_mask)
    o2 = F.linear(_shifted(o1, o1_before), second[0]) + F.linear(o1, second[1], second_bias)
    y = (x + o2).to(torch.promote_types(x.dtype, torch.float32))
    y = y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + eps)
    last = (x[:, -1], o1[:, -1]) if x.shape[1] else history
    if last is None:
        last = (x.new_zeros(x.shape[0], x.shape[2]), x.new_zeros(x.shape[0], first.shape[1]))
    return y.to(x.dtype) * norm_weight, last


def _masked(x: Tensor, token_mask: Tensor | None) -> Tensor:
    return x if token_mask is None else x.masked_fill(~token_mask[..., None], 0)


def _shifted(x: Tensor, before: Tensor | None) -> Tensor:
    """x one position later; its first row is `before`, or zeros."""
    start = torch.zeros_like(x[:, :1]) if before is None else before[:, None].to(x.dtype)
    return torch.cat([start, x], dim=1)[:, : x.shape[1]]
