"""Localized Filtering (LFA), the causal short filter of Yuan 2.0."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gatelab import kernels


class LocalizedFiltering(nn.Module):
    """Two causal two-tap convolutions, D → D/2 → D, with a residual and an RMSNorm.

    Yuan 2.0 puts it before self-attention, where queries and keys read the filtered sequence and values the raw one;
    `create_router("attention", lfa=True)` puts it before the Attention Router. Without an activation in between it is
    a linear causal three-tap filter of rank at most D/2.

    Args:
        hidden_size: D.
        eps: of the RMSNorm.

    Source: Yuan 2.0, arXiv 2311.15786, §2.1; the released code for the zeros before the start. 2D² + 2.5D parameters.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        if hidden_size < 2:
            raise ValueError(f"hidden_size={hidden_size} is too narrow for the D/2 channels of LFA; use at least 2")
        D, H = hidden_size, hidden_size // 2
        self.hidden_size, self.eps = hidden_size, eps
        self.first = nn.Parameter(torch.empty(2, H, D))
        self.first_bias = nn.Parameter(torch.empty(H))
        self.second = nn.Parameter(torch.empty(2, D, H))
        self.second_bias = nn.Parameter(torch.empty(D))
        self.norm_weight = nn.Parameter(torch.empty(D))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform within 1/√fan-in, as torch's convolutions; the norm starts at 1."""
        for weight, bias in ((self.first, self.first_bias), (self.second, self.second_bias)):
            bound = 1 / math.sqrt(2 * weight.shape[2])
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)
        nn.init.ones_(self.norm_weight)

    def forward(
        self, x_BSD: Tensor, *, token_mask: Tensor | None = None, cache: dict[Any, Any] | None = None
    ) -> Tensor:
        """Filter a sequence.

        Args:
            x_BSD: (B, S, D).
            token_mask: (B, S), cast to bool; True = a real token.
            cache: a dict that carries the filter over from call to call when decoding; holds (B, D) and (B, D/2) under
                this module, so that one dict serves several.

        Returns:
            (B, S, D).
        """
        y_BSD, history = kernels.local_filter(
            x_BSD,
            self.first,
            self.first_bias,
            self.second,
            self.second_bias,
            self.norm_weight,
            eps=self.eps,
            token_mask=None if token_mask is None else token_mask.bool(),
            history=None if cache is None else cache.get(self),
        )
        if cache is not None:
            cache[self] = history
        return y_BSD

    def flops(self, T: int) -> int:
        """Matrix-product FLOPs of T tokens: 4 products of D × D/2 per token."""
        return 8 * T * self.hidden_size * (self.hidden_size // 2)

    def extra_repr(self) -> str:
        return f"hidden_size={self.hidden_size}, eps={self.eps}"
