"""A bound on what an expert takes: assignments past it are dropped."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from gatelab import kernels
from gatelab.routers.checks import check_positive
from gatelab.routers.context import Context, Selection
from gatelab.routers.guarantees import Guarantees
from gatelab.routers.select.grouping import Group, check_group

Drop = Literal["position", "score", "priority"]
Number = TypeVar("Number", int, Tensor)


class Capacity(nn.Module):
    """Any selection, of which each expert keeps C = ceil(cf · N / E) assignments at most; N are those of its group.

    With K experts a token N = K·T over real tokens, so C = ceil(K·T·cf/E), in exact ratios (in floats ceil(50 · 1.1)
    is 56). Only `keep` is filled: what is dropped still counts as requested, and the weights of what is kept do not
    change. C depends on how many tokens the group has, so a prefix routes differently by itself: not causal.

    Args:
        select: the selection to bound. What it dropped itself takes no place.
        capacity_factor: cf in training; None = no bound.
        eval_capacity_factor: cf in evaluation; None = no bound.
        drop: who keeps a place. `position`: all first choices before all second ones, each in the order of tokens;
            `priority`: the same, but tokens with the largest top score first (V-MoE's batch-prioritised routing);
            `score`: the assignments with the largest scores, whichever choice they are.
        group: tokens compete within their row (`sequence`) or within the whole `batch`.

    Source: GShard, arXiv 2006.16668, §2.2; Switch Transformers, arXiv 2101.03961, §2.2, equation 3; `priority`: V-MoE,
    arXiv 2106.05974, §4.1.
    """

    def __init__(
        self,
        select: nn.Module,
        capacity_factor: float | None,
        eval_capacity_factor: float | None = None,
        *,
        drop: Drop = "position",
        group: Group = "batch",
    ) -> None:
        super().__init__()
        check_group(group)
        if drop not in get_args(Drop):
            raise ValueError(f"drop={drop!r} is unknown; choose one of {', '.join(get_args(Drop))}")
        self.select, self.drop, self.group = select, drop, group
        check_positive(capacity_factor=capacity_factor, eval_capacity_factor=eval_capacity_factor)
        self.capacity_factor, self.eval_capacity_factor = capacity_factor, eval_capacity_factor

    @property
    def k(self) -> int | None:
        """Experts per token of the bounded selection."""
        return getattr(self.select, "k", None)

    def factor(self, training: bool) -> float | None:
        """cf of a mode."""
        return self.capacity_factor if training else self.eval_capacity_factor

    def forward(self, scores_TE: Tensor, ctx: Context) -> Selection:
        selection = self.select(scores_TE, ctx)
        factor = self.factor(ctx.training)
        if factor is None:
            return selection
        ids = selection.ids
        if ctx.mask_T is not None:
            ids = torch.where(ctx.mask_T[:, None], ids, -1)
        wanted = ids if selection.keep is None else torch.where(selection.keep, ids, -1)
        G = ctx.shape[0] if self.group == "sequence" else 1
        C_G = slots((ids >= 0).view(G, ids.numel() // max(G, 1)).sum(1), factor, ctx.num_experts)
        order_GN = None
        if self.drop == "score":
            gates_TJ = ctx.scores.detach().gather(1, ids.clamp(min=0))
            order_GN = choice_major(gates_TJ, G).argsort(dim=1, descending=True, stable=True)
        elif self.drop == "priority":
            top_T1 = ctx.scores.detach().amax(dim=1, keepdim=True)
            order_GS = choice_major(top_T1, G).argsort(dim=1, descending=True, stable=True)
            S, J = order_GS.shape[1], ids.shape[1]
            order_GN = (order_GS[:, None] + S * torch.arange(J, device=ids.device)[:, None]).flatten(1)
        return replace(selection, ids=ids, keep=first_come(wanted, C_G, ctx.num_experts, order_GN))

    def guarantees(self, training: bool) -> Guarantees:
        inner = Guarantees.joint([self.select], training)
        factor = self.factor(training)
        if factor is None:
            return inner
        return replace(inner, causal=False, token_wise=False, dropless=False, max_load=factor)

    def extra_repr(self) -> str:
        factors = f"capacity_factor={self.capacity_factor}, eval_capacity_factor={self.eval_capacity_factor}"
        return f"{factors}, drop={self.drop!r}, group={self.group!r}"


def slots(n: Number, factor: float | Fraction, num_experts: int) -> Number:
    """ceil(factor · n / E) in integers, of a number or of a tensor of them."""
    above, below = Fraction(str(factor)).as_integer_ratio()
    return -(-n * above // (below * num_experts))


def choice_major(values_TJ: Tensor, G: int) -> Tensor:
    """(G, J·T/G): a group's first choices in the order of its tokens, then its second ones, ..."""
    T, J = values_TJ.shape
    return values_TJ.view(G, T // max(G, 1), J).transpose(1, 2).flatten(1)


def first_come(ids_TJ: Tensor, C_G: Tensor, num_experts: int, order_GN: Tensor | None = None) -> Tensor:
    """(T, J) bool: which assignments are among the first C of their expert and group.

    Args:
        ids_TJ: expert ids, -1 = none.
        C_G: (G,) places per expert in each group of T/G consecutive tokens.
        num_experts: E.
        order_GN: (G, N = J·T/G) a permutation of each group's choices in choice-major order, who comes first;
            default that order itself.
    """
    (T, J), G, E = ids_TJ.shape, C_G.shape[0], num_experts
    ids_GN = choice_major(ids_TJ, G)
    if order_GN is not None:
        ids_GN = ids_GN.gather(1, order_GN)
    group_G1 = torch.arange(G, device=ids_TJ.device)[:, None]
    keys = torch.where(ids_GN >= 0, ids_GN + group_G1 * E, -1).view(-1, 1)
    order, offsets = kernels.group_by_expert(keys, G * E)
    keys = keys.flatten()[order]
    place = torch.arange(keys.shape[0], device=keys.device) - offsets[keys.clamp(min=0)]
    kept = (keys >= 0) & (place < C_G[keys.clamp(min=0) // E])
    kept_GN = torch.empty_like(kept).scatter(0, order, kept).view_as(ids_GN)
    if order_GN is not None:
        kept_GN = torch.empty_like(kept_GN).scatter(1, order_GN, kept_GN)
    return kept_GN.view(G, J, T // max(G, 1)).transpose(1, 2).reshape(T, J)
