"""Selections that ignore the scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gatelab.routers.context import Context, Selection
from gatelab.routers.guarantees import Guarantees


class AllExperts(nn.Module):
    """Every token to every expert."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts

    def forward(self, scores_TE: Tensor, ctx: Context) -> Selection:
        T, E = scores_TE.shape
        return Selection(torch.arange(E, device=scores_TE.device).expand(T, E))

    def guarantees(self, training: bool) -> Guarantees:
        return Guarantees(max_load=1.0, experts_per_token=self.num_experts)


class RandomK(nn.Module):
    """k distinct experts per token, uniform, drawn anew in evaluation too, from torch's default generator."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, scores_TE: Tensor, ctx: Context) -> Selection:
        (B, S), E = ctx.shape, scores_TE.shape[1]
        # Drawn position by position, so that the same seed gives a prefix the experts it has inside the whole.
        keys = torch.rand(S, B, E, device=scores_TE.device).transpose(0, 1).reshape(B * S, E)
        return Selection(keys.topk(self.k, dim=-1).indices)

    def guarantees(self, training: bool) -> Guarantees:
        return Guarantees(token_wise=False, experts_per_token=self.k)

    def extra_repr(self) -> str:
        return f"k={self.k}"


class RoundRobin(nn.Module):
    """Real token s of a row goes to experts (s·k + j) mod E for j < k. Decoding counts on in `cache`."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, scores_TE: Tensor, ctx: Context) -> Selection:
        (B, S), E = ctx.shape, scores_TE.shape[1]
        real = torch.ones(B, S, dtype=torch.int64, device=scores_TE.device)
        if ctx.token_mask is not None:
            real = ctx.token_mask.to(torch.int64)
        count = real.cumsum(1)
        if ctx.cache is not None:
            before = ctx.cache.get(self, torch.zeros_like(real[:, :0].sum(1)))
            count = count + before[:, None]
            ctx.cache[self] = before + real.sum(1)
        choices = torch.arange(self.k, device=scores_TE.device)
        ids = ((count - real)[:, :, None] * self.k + choices) % E
        return Selection(ids.view(B * S, self.k))

    def guarantees(self, training: bool) -> Guarantees:
        return Guarantees(token_wise=False, max_load=1.0, experts_per_token=self.k)

    def extra_repr(self) -> str:
        return f"k={self.k}"
