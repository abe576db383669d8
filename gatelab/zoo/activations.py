"""Expert activations of published models beyond those of `gatelab.kernels`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClampedSwiGLU:
    """g·σ(α·g)·(u + offset) with g = min(gate, limit) and u = up clamped to ±limit; (n, 2·I) to (n, I), gate first.

    Args:
        limit: bound on both halves.
        alpha: α; 1 makes it a clamped SwiGLU, gpt-oss has 1.702.
        offset: added to the up half; gpt-oss has 1.

    Source: gpt-oss model card, arXiv 2508.10925, §2, and its released code.
    """

    limit: float = 7.0
    alpha: float = 1.702
    offset: float = 1.0

    def __call__(self, h: Tensor) -> Tensor:
        gate, up = h.chunk(2, dim=-1)
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return gate * torch.sigmoid(self.alpha * gate) * (up + self.offset)
