"""Experts that cost (next to) nothing: identity, zero, constant."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelab.routers.router import ZERO_COMPUTATION
from gatelab.routers.routing import Routing


class ZeroComputation(nn.Module):
    """The last Z experts of a layer, by kind.

    `identity` gives x back ("copy"), `zero` gives 0, and `constant` mixes x with a learned vector:
    α₁ x + α₂ v with (α₁, α₂) = softmax(W x).

    Args:
        kinds: one of `identity`, `zero`, `constant` per expert.
        hidden_size: D.

    Attributes:
        vectors: (C, D), the v of each constant expert.
        mixers: (C, 2, D), the W of each.

    Raises:
        ValueError: an unknown kind.

    Source: MoE++, arXiv 2410.07348, §3.1, equations 3-5; LongCat-Flash, arXiv 2509.01322 (identity alone).
    """

    def __init__(self, kinds: tuple[str, ...], hidden_size: int) -> None:
        super().__init__()
        for kind in kinds:
            if kind not in ZERO_COMPUTATION:
                raise ValueError(f"zero_computation holds {kind!r}; choose from {', '.join(ZERO_COMPUTATION)}")
        self.kinds = kinds
        C = kinds.count("constant")
        self.vectors = nn.Parameter(torch.empty(C, hidden_size))
        self.mixers = nn.Parameter(torch.empty(C, 2, hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Vectors standard normal, as released; mixers uniform within 1/√D."""
        nn.init.normal_(self.vectors)
        bound = self.mixers.shape[2] ** -0.5
        nn.init.uniform_(self.mixers, -bound, bound)

    def forward(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Their share of the layer's output.

        Args:
            x_TD: (T, D).
            routing: its last Z columns are these experts.

        Returns:
            (T, D) in the dtype of `x_TD`, summed in at least float32.
        """
        Z, wide = len(self.kinds), torch.promote_types(x_TD.dtype, torch.float32)
        weights_TZ = routing.to_dense()[:, -Z:].to(wide)
        routed_TZ = replace(routing, weights=routing.live.to(wide)).to_dense()[:, -Z:] > 0
        # Tokens that none of them gets, padding among them, may hold anything: 0 · NaN is NaN.
        x_TD_wide = torch.where(routed_TZ.any(1, keepdim=True), x_TD.to(wide), 0)
        copies = [z for z, kind in enumerate(self.kinds) if kind == "identity"]
        y_TD = weights_TZ[:, copies].sum(1, keepdim=True) * x_TD_wide
        constants = [z for z, kind in enumerate(self.kinds) if kind == "constant"]
        for c, z in enumerate(constants):
            weight_T1, routed_T1 = weights_TZ[:, z : z + 1], routed_TZ[:, z : z + 1]
            into_TD = x_TD_wide * weight_T1 if routing.weights_on_input else x_TD_wide
            mix_T2 = F.linear(into_TD, self.mixers[c].to(wide)).softmax(dim=1)
            out_TD = mix_T2[:, :1] * into_TD + mix_T2[:, 1:] * self.vectors[c].to(wide)
            y_TD = y_TD + out_TD * (routed_T1 if routing.weights_on_input else weight_T1)
        return y_TD.to(x_TD.dtype)

    def extra_repr(self) -> str:
        return ", ".join(f"{self.kinds.count(kind)} {kind}" for kind in ZERO_COMPUTATION if kind in self.kinds)
