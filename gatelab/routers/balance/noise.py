"""Noise in training, from torch's default generator: a private one would draw anew when activations are recomputed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelab.routers.balance.base import Balance
from gatelab.routers.context import Context
from gatelab.routers.guarantees import Guarantees


class _Noise(Balance):
    def guarantees(self, training: bool) -> Guarantees:
        return Guarantees(token_wise=not training)


class InputJitter(_Noise):
    """Each number the gate reads times U(1 - ε, 1 + ε) in training. The experts read the clean hidden states.

    It scores again, so it stands before other noise, and training costs two scorings.

    Args:
        eps: ε; Switch uses 0.01.

    Source: Switch Transformers, arXiv 2101.03961, §2.4 and appendix C.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    @property
    def rescores(self) -> bool:
        """Training runs the gate's score a second time."""
        return self.eps != 0

    def perturb(self, logits_TE: Tensor, ctx: Context) -> Tensor:
        if not ctx.training or not self.eps:
            return logits_TE
        return ctx.rescore(ctx.hidden * torch.empty_like(ctx.hidden).uniform_(1 - self.eps, 1 + self.eps))

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


class GaussianNoise(_Noise):
    """z + N(0, σ²) in training.

    Args:
        std: σ; V-MoE uses 1/E.

    Source: V-MoE, arXiv 2106.05974, §2.2.
    """

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def perturb(self, logits_TE: Tensor, ctx: Context) -> Tensor:
        if not ctx.training or not self.std:
            return logits_TE
        ctx.noise_std = logits_TE.new_tensor(self.std)
        return logits_TE + self.std * torch.randn_like(logits_TE)

    def extra_repr(self) -> str:
        return f"std={self.std}"


class LearnedNoise(_Noise):
    """z + softplus(W_noise x) · N(0, 1) in training: each expert learns for each token how much it wants to explore.

    D·E parameters, 0 at first (σ = ln 2). σ is at least `floor`, as in the authors' code; the paper has none.

    Args:
        hidden_size: D.
        num_experts: E.
        floor: added to σ, so that the load loss can divide by it.

    Source: Shazeer et al. 2017, arXiv 1701.06538, §2.1, equation 4; zero initialisation: appendix A.
    """

    def __init__(self, hidden_size: int, num_experts: int, floor: float = 0.01) -> None:
        super().__init__()
        self.floor = floor
        self.weight = nn.Parameter(torch.zeros(num_experts, hidden_size))

    def perturb(self, logits_TE: Tensor, ctx: Context) -> Tensor:
        if not ctx.training:
            return logits_TE
        dtype = logits_TE.dtype
        std_TE = F.softplus(F.linear(ctx.hidden_TD.to(dtype), self.weight.to(dtype))) + self.floor
        ctx.noise_std = std_TE
        return logits_TE + std_TE * torch.randn_like(logits_TE)

    def flops(self, T: int) -> int:
        """2·T·D·E in training, else 0."""
        return 2 * T * self.weight.numel() if self.training else 0

    def extra_repr(self) -> str:
        return f"floor={self.floor}"
