"""Selections that are given, not computed: by labels, or by an earlier Routing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gatelab.routers.context import Context, Selection
from gatelab.routers.guarantees import Guarantees
from gatelab.routers.routing import Routing


class ByLabel(nn.Module):
    """A token with label l goes to experts (l·k + j) mod E for j < k: every label owns its k experts."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, scores_TE: Tensor, ctx: Context) -> Selection:
        if ctx.labels is None:
            raise ValueError("labels are missing; the oracle routes by them: router(x, labels=...)")
        labels_T1 = ctx.labels.flatten().to(torch.int64)[:, None]
        return Selection((labels_T1 * self.k + torch.arange(self.k, device=labels_T1.device)) % ctx.num_experts)

    def guarantees(self, training: bool) -> Guarantees:
        return Guarantees(experts_per_token=self.k)

    def extra_repr(self) -> str:
        return f"k={self.k}"


class Replay(nn.Module):
    """The assignments of a recorded Routing, choice by choice.

    Args:
        routing: over as many tokens as the calls have; None = to be set later, as `routing`.
        recorded_weights: also return its weights, detached, in place of the scores.
    """

    def __init__(self, routing: Routing | None, recorded_weights: bool) -> None:
        super().__init__()
        self.routing, self.recorded_weights = routing, recorded_weights

    def forward(self, scores_TE: Tensor, ctx: Context) -> Selection:
        routing = self.checked(scores_TE)
        live = routing.live
        width = max(int(routing.choice[live].max()) + 1, 1) if bool(live.any()) else 1
        cells = (routing.token_index[live], routing.choice[live])
        ids = torch.full((routing.num_tokens, width), -1, device=live.device)
        ids[cells] = routing.expert_index[live]
        if not self.recorded_weights:
            return Selection(ids.to(scores_TE.device))
        gates = torch.zeros(ids.shape, dtype=scores_TE.dtype, device=ids.device)
        gates[cells] = routing.weights[live].detach().to(gates.dtype)
        return Selection(ids.to(scores_TE.device), gates=gates.to(scores_TE.device))

    def checked(self, scores_TE: Tensor) -> Routing:
        """The recorded Routing, if it fits (T, E) scores; else ValueError."""
        if self.routing is None:
            raise ValueError("routing is missing; pass routing= (a Routing, or the path of a saved one)")
        recorded = (self.routing.num_tokens, self.routing.num_experts)
        if recorded != tuple(scores_TE.shape):
            raise ValueError(f"routing is over (T, E) = {recorded}; this call has {tuple(scores_TE.shape)}")
        return self.routing

    def guarantees(self, training: bool) -> Guarantees:
        return Guarantees(causal=False, token_wise=False, dropless=False)
