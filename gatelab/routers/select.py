"""Select: scores to who goes where. `select(scores (T, E), ctx) -> Selection`."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor, nn

from gatelab import kernels
from gatelab.routers.context import Context, Selection
from gatelab.routers.guarantees import Guarantees
from gatelab.routers.routing import ranked

Group = Literal["sequence", "batch"]


def check_group(group: str) -> None:
    """Raise ValueError unless `group` is `sequence` or `batch`."""
    if group not in ("sequence", "batch"):
        raise ValueError(f"group={group!r} is unknown; choose 'sequence' (each row by itself) or 'batch'")


def grouped(scores_TE: Tensor, ctx: Context, group: str) -> tuple[Tensor, Tensor | None]:
    """(G, T/G, E) scores and (G, T/G) mask: one group per row, or one for the whole batch."""
    E = scores_TE.shape[1]
    B, S = ctx.shape if group == "sequence" else (1, scores_TE.shape[0])
    return scores_TE.view(B, S, E), None if ctx.token_mask is None else ctx.token_mask.view(B, S)


class TopK(nn.Module):
    """The k experts with the largest scores. Ties break the same way every time, but not always to the lower id."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, scores_TE: Tensor, ctx: Context) -> Selection:
        return Selection(scores_TE.topk(self.k, dim=-1).indices)

    def guarantees(self, training: bool) -> Guarantees:
        return Guarantees(experts_per_token=self.k)

    def extra_repr(self) -> str:
        return f"k={self.k}"


class ExpertChoice(nn.Module):
    """Each expert takes the C = min(T, max(1, ceil(T·cf/E))) tokens of its column with the largest scores.

    A token is taken by any number of experts, from none to E. Whether it is taken depends on the tokens after it:
    neither causal nor usable for generation as it is.

    Args:
        capacity_factor: cf, the mean number of experts per token.
        group: tokens compete within their row (`sequence`) or within the whole `batch`; T counts real tokens of one.

    Source: Zhou et al. 2022, arXiv 2202.09368, §3.2.
    """

    def __init__(self, capacity_factor: float, group: Group = "batch") -> None:
        super().__init__()
        check_group(group)
        if not capacity_factor > 0:
            raise ValueError(f"capacity_factor={capacity_factor} takes no token; use a positive number")
        self.capacity_factor, self.group = capacity_factor, group
        # Kept as an exact ratio of integers: in floats ceil(50 · 1.1) is 56.
        self._ratio = Fraction(str(capacity_factor)).as_integer_ratio()

    def forward(self, scores_TE: Tensor, ctx: Context) -> Selection:
        scores_GSE, mask_GS = grouped(scores_TE, ctx, self.group)
        G, S, E = scores_GSE.shape
        above, below = self._ratio[0], self._ratio[1] * E
        C = min(S, max(1, -(-S * above // below)))
        if mask_GS is not None:
            scores_GSE = scores_GSE.masked_fill(~mask_GS[:, :, None], -torch.inf)
        token_GCE = scores_GSE.topk(C, dim=1).indices
        taken_GCE = torch.ones_like(token_GCE, dtype=torch.bool)
        if mask_GS is not None:
            real_G = mask_GS.sum(1)
            wanted_G = -(-real_G * above // below)
            C_G = torch.minimum(wanted_G.clamp(min=1), real_G)
            taken_GCE = (torch.arange(C, device=C_G.device) < C_G[:, None])[:, :, None].expand_as(token_GCE)
        mask_TE = torch.zeros_like(scores_GSE, dtype=torch.bool).scatter(1, token_GCE, taken_GCE).view(G * S, E)
        ids, _ = ranked(mask_TE, scores_TE)
        return Selection(ids, max_assignments=G * E * C)

    def guarantees(self, training: bool) -> Guarantees:
        return Guarantees(causal=False, token_wise=False, dropless=False, max_load=1.0)

    def extra_repr(self) -> str:
        return f"capacity_factor={self.capacity_factor}, group={self.group!r}"


class BalancedAssignment(nn.Module):
    """In training the exact optimum of Σ scores with every expert at floor…ceil of k·T/E tokens; then top-k.

    Writes the dual prices to `ctx.statistics["prices"]` and starts from those it finds there (see `Prices`).

    Args:
        k: experts per token.
        group: the load is even in every row (`sequence`) or over the `batch`.

    Source: BASE layers, Lewis et al. 2021, arXiv 2103.16716, §3; solved exactly, not by an auction.
    """

    def __init__(self, k: int, group: Group = "batch") -> None:
        super().__init__()
        check_group(group)
        self.k, self.group = k, group

    def forward(self, scores_TE: Tensor, ctx: Context) -> Selection:
        if not ctx.training:
            return Selection(scores_TE.topk(self.k, dim=-1).indices)
        scores_GSE, mask_GS = grouped(scores_TE.detach(), ctx, self.group)
        start = ctx.statistics.get("prices")
        solved = [
            kernels.balanced_assignment(
                scores_GSE[g], k=self.k, prices=start, token_mask=None if mask_GS is None else mask_GS[g]
            )
            for g in range(scores_GSE.shape[0])
        ]
        if solved:
            ctx.statistics["prices"] = torch.stack([a.prices for a in solved]).mean(0).float()
            return Selection(torch.cat([a.expert_ids for a in solved]))
        return Selection(torch.zeros(0, self.k, dtype=torch.int64, device=scores_TE.device))

    def guarantees(self, training: bool) -> Guarantees:
        if training:
            return Guarantees(causal=False, token_wise=False, max_load=1.0, experts_per_token=self.k)
        return Guarantees(experts_per_token=self.k)

    def extra_repr(self) -> str:
        return f"k={self.k}, group={self.group!r}"


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
            before = ctx.cache.get("round_robin", torch.zeros_like(real[:, :0].sum(1)))
            count = count + before[:, None]
            ctx.cache["round_robin"] = before + real.sum(1)
        choices = torch.arange(self.k, device=scores_TE.device)
        ids = ((count - real)[:, :, None] * self.k + choices) % E
        return Selection(ids.view(B * S, self.k))

    def guarantees(self, training: bool) -> Guarantees:
        return Guarantees(token_wise=False, max_load=1.0, experts_per_token=self.k)

    def extra_repr(self) -> str:
        return f"k={self.k}"
