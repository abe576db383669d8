"""Selections that are given, not computed: by labels, or by an earlier Routing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gatelab.routers.context import Context, Selection, gates_at
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
        routing: over as many tokens as the calls have; None = to be set later.
        base: the selection whose place this takes, which is asked for the weights if it makes its own; None = return
            the recorded weights, detached, in place of the scores.
    """

    def __init__(self, routing: Routing | None, base: Callable[..., Selection] | None = None) -> None:
        super().__init__()
        self.base = base
        self.routing = routing

    @property
    def routing(self) -> Routing | None:
        """What is replayed; set another for the next call."""
        return self._routing

    @routing.setter
    def routing(self, routing: Routing | None) -> None:
        self._routing = routing
        if routing is None:
            return
        live = routing.live
        choice, cells = routing.choice[live], (routing.token_index[live], routing.choice[live])
        width = int(choice.max()) + 1 if choice.numel() else 1
        # Here and not in the call: its shape depends on what was recorded, and a call must not wait for the device.
        self._ids = torch.full((routing.num_tokens, width), -1, device=live.device)
        self._ids[cells] = routing.expert_index[live]
        self._gates = routing.weights.new_zeros(self._ids.shape).detach()
        self._gates[cells] = routing.weights[live].detach()

    def forward(self, scores_TE: Tensor, ctx: Context) -> Selection:
        if self._routing is None:
            raise ValueError("routing is missing; pass routing= (a Routing, or the path of a saved one)")
        recorded = (self._routing.num_tokens, self._routing.num_experts)
        if recorded != tuple(scores_TE.shape):
            raise ValueError(f"routing is over (T, E) = {recorded}; this call has {tuple(scores_TE.shape)}")
        ids_TJ = self._ids.to(scores_TE.device)
        if self.base is None:
            return Selection(ids_TJ, gates=self._gates.to(scores_TE.device))
        return Selection(ids_TJ, gates=gates_at(self.base, ids_TJ, scores_TE, ctx))

    def guarantees(self, training: bool) -> Guarantees:
        return Guarantees(causal=False, token_wise=False, dropless=False)
