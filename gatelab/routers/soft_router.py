"""`SoftRouter`: the gate of Soft MoE. It selects nothing, so of the pipeline only the score remains."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from gatelab.routers.context import Context, Selection
from gatelab.routers.guarantees import Guarantees
from gatelab.routers.router import Router
from gatelab.routers.routing import Routing
from gatelab.routers.score.slots import SlotScore
from gatelab.routers.soft_routing import SoftRouting


class SoftRouter(Router):
    """Dispatch by a softmax over the tokens of each sequence, combine by a softmax over its slots.

    It returns a `SoftRouting`, which the expert layer takes like a Routing.

    Args:
        score: (T, E·P) logits of tokens against slots.
        gate_dtype: as for `Router`.

    Source: Soft MoE, Puigcerver et al. 2023, arXiv 2308.00951, §2.1, equations 1-3.
    """

    def __init__(self, score: SlotScore, gate_dtype: torch.dtype = torch.float32) -> None:
        super().__init__(score=score, select=_nothing, activation="none", gate_dtype=gate_dtype)
        self.slots_per_expert = score.slots_per_expert

    @property
    def parts(self) -> list[Any]:
        """The score alone."""
        return [self.score]

    @property
    def guarantees(self) -> Guarantees:
        """Every token of a sequence is in every slot of it."""
        return Guarantees(causal=False, token_wise=False)

    def _route(self, ctx: Context, forced: Tensor | None) -> Routing:
        if forced is not None:
            raise ValueError("forced: a soft gate sends every token to every slot; it has no ids to force")
        B, S = ctx.shape
        E, P = self.num_experts, self.slots_per_expert
        logits_BSEP = self._score(ctx).view(B, S, E, P)
        combine_BSEP = logits_BSEP.flatten(2).softmax(dim=2).view(B, S, E, P)
        if ctx.token_mask is None:
            dispatch_BSEP = logits_BSEP.softmax(dim=1)
        else:
            mask_BS11 = ctx.token_mask[:, :, None, None]
            # A finite floor instead of -inf: a row of padding alone has nothing to take a softmax over.
            floor = torch.finfo(logits_BSEP.dtype).min
            dispatch_BSEP = logits_BSEP.masked_fill(~mask_BS11, floor).softmax(dim=1).masked_fill(~mask_BS11, 0)
            combine_BSEP = combine_BSEP.masked_fill(~mask_BS11, 0)
        logits_TE = logits_BSEP.logsumexp(dim=3).view(B * S, E)
        return cast("Routing", SoftRouting(dispatch_BSEP, combine_BSEP, logits_TE, ctx.mask_T))


def _nothing(scores_TE: Tensor, ctx: Context) -> Selection:
    raise AssertionError("a soft gate selects nothing")
