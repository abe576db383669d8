"""Parts of a gate that only a converted block needs: forms that one or two released models use."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelab.routers.context import Context, Selection
from gatelab.routers.guarantees import Guarantees
from gatelab.routers.score import LinearScore
from gatelab.routers.select import GroupLimitedTopK
from gatelab.routers.select.capacity import first_come


class ScaledScore(LinearScore):
    """m · W x, or c · tanh(W x / c): linear logits times a constant, or soft-capped.

    Args:
        hidden_size: D.
        num_experts: E.
        bias: adds a learned (E,) before either.
        multiplier: m (Muse Spark).
        softcap: c; None = no cap (Laguna).
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        bias: bool = False,
        multiplier: float = 1.0,
        softcap: float | None = None,
    ) -> None:
        super().__init__(hidden_size, num_experts, bias)
        self.multiplier, self.softcap = multiplier, softcap

    def forward(self, ctx: Context) -> Tensor:
        logits_TE = super().forward(ctx) * self.multiplier
        return logits_TE if self.softcap is None else (logits_TE / self.softcap).tanh() * self.softcap

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, multiplier={self.multiplier}, softcap={self.softcap}"


class RenormalizeAtLeast(nn.Module):
    """Divide by the sum over the token's chosen experts, or by `minimum` where the sum is below it (Ernie 4.5)."""

    def __init__(self, minimum: float) -> None:
        super().__init__()
        self.minimum = minimum

    def forward(self, gates_TJ: Tensor, valid_TJ: Tensor, ctx: Context) -> Tensor:
        return gates_TJ / gates_TJ.sum(dim=-1, keepdim=True).clamp(min=self.minimum)

    def extra_repr(self) -> str:
        return f"minimum={self.minimum}"


class UnitNorm(nn.Module):
    """Divide by the p-norm of the token's chosen gates (DBRX, `moe_normalize_expert_weights`)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, gates_TJ: Tensor, valid_TJ: Tensor, ctx: Context) -> Tensor:
        return F.normalize(gates_TJ, p=self.p, dim=-1, eps=torch.finfo(gates_TJ.dtype).tiny)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class ZeroedGroupsTopK(GroupLimitedTopK):
    """Group-limited top-k that sets closed groups to 0, as some released code does, not to -inf.

    An expert of a closed group is then chosen before an open one whose biased score is below 0 (A.X K2, which says so).
    """

    def forward(self, scores_TE: Tensor, ctx: Context) -> Selection:
        scores_TGe = scores_TE.unflatten(1, (self.num_groups, -1))
        group_TG = scores_TGe.topk(self.summands, dim=-1).values.sum(-1)
        best_TM = group_TG.topk(self.keep_groups, dim=-1, sorted=False).indices
        open_TG = torch.zeros_like(group_TG, dtype=torch.bool).scatter(1, best_TM, True)
        return Selection(torch.where(open_TG[:, :, None], scores_TGe, 0).flatten(1).topk(self.k, dim=-1).indices)


class ArgMax(nn.Module):
    """The best expert; of equals the one with the lowest id, where `TopK` takes any (Switch in half precision)."""

    k = 1

    def forward(self, scores_TE: Tensor, ctx: Context) -> Selection:
        return Selection(scores_TE.argmax(dim=-1, keepdim=True))

    def guarantees(self, training: bool) -> Guarantees:
        return Guarantees(experts_per_token=1)


class FixedCapacity(nn.Module):
    """Any selection, of which each expert keeps the first `capacity` tokens of every sequence.

    A number of tokens, not a factor: what a sequence may use does not grow with its length (Hugging Face's Switch
    Transformers). Causal, since only earlier tokens take places.

    Args:
        select: the selection to bound.
        capacity: tokens per expert and sequence.
    """

    def __init__(self, select: nn.Module, capacity: int) -> None:
        super().__init__()
        self.select, self.capacity = select, capacity

    @property
    def k(self) -> int | None:
        """Experts per token of the bounded selection."""
        return getattr(self.select, "k", None)

    def forward(self, scores_TE: Tensor, ctx: Context) -> Selection:
        selection = self.select(scores_TE, ctx)
        ids = selection.ids
        if ctx.mask_T is not None:
            ids = torch.where(ctx.mask_T[:, None], ids, -1)
        places_B = torch.full((ctx.shape[0],), self.capacity, device=ids.device)
        return replace(selection, ids=ids, keep=first_come(ids, places_B, ctx.num_experts))

    def guarantees(self, training: bool) -> Guarantees:
        return replace(Guarantees.joint([self.select], training), token_wise=False, dropless=False)

    def extra_repr(self) -> str:
        return f"capacity={self.capacity}"
