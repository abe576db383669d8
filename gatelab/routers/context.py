"""What the parts of a gate see of one forward, and what the selecting part answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gatelab.routers.routing import Routing


@dataclass
class Context:
    """One forward of a gate. The pipeline fills the second half as it goes.

    Attributes:
        hidden: (B, S, D) float32 (or the router's `gate_dtype`), zero at masked tokens.
        num_experts: E.
        training: the router's mode.
        token_mask: (B, S) bool, True = a real token, or None when all are.
        token_ids, labels: (B, S) or None.
        previous: the Routing of the layer before, or None.
        cache: the caller's dict for decoding step by step, or None; a part keeps what it needs under its own key.
        score: the gate's own score, in its dtype; see `rescore`.
        logits: (T, E) raw router logits.
        noisy_logits: (T, E) after every `perturb`.
        noise_std: standard deviation of Gaussian noise on the logits, (T, E) or a scalar; None without such noise.
        scores: (T, E) after the activation.
        probabilities: (T, E), rows that sum to 1.
        selection: what `select` answered.
        requested: (E,) int64, real assignments in the selection, before any drop.
        weights: (T, J) combine weights of the selection, before any drop.
        statistics: one dict that every part may write; detached small tensors, for `update`.
    """

    hidden: Tensor
    num_experts: int
    training: bool = True
    token_mask: Tensor | None = None
    token_ids: Tensor | None = None
    labels: Tensor | None = None
    previous: Routing | None = None
    cache: dict[Any, Any] | None = None
    score: Callable[[Context], Tensor] | None = None
    logits: Tensor = field(init=False)
    noisy_logits: Tensor = field(init=False)
    noise_std: Tensor | None = None
    scores: Tensor = field(init=False)
    probabilities: Tensor = field(init=False)
    selection: Selection = field(init=False)
    requested: Tensor = field(init=False)
    weights: Tensor = field(init=False)
    statistics: dict[str, Tensor] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """(B, S); T = B · S."""
        return self.hidden.shape[0], self.hidden.shape[1]

    @property
    def hidden_TD(self) -> Tensor:
        """(T, D), rows one after the other."""
        return self.hidden.flatten(0, 1)

    @property
    def mask_T(self) -> Tensor | None:
        """(T,) bool or None."""
        return None if self.token_mask is None else self.token_mask.flatten()

    def rescore(self, hidden: Tensor) -> Tensor:
        """(T, E) raw logits of other hidden states (B, S, D), for noise on the gate's input."""
        assert self.score is not None
        return self.score(replace(self, hidden=hidden))

    def mean(self, values_T: Tensor) -> Tensor:
        """Mean over real tokens of (T,) or (T, ...) values; 0 when there is no real token."""
        if self.mask_T is None:
            return values_T.sum(0) / max(values_T.shape[0], 1)
        mask = self.mask_T.view(-1, *[1] * (values_T.dim() - 1))
        return torch.where(mask, values_T, 0).sum(0) / self.mask_T.sum().clamp(min=1)


@dataclass
class Selection:
    """Who goes where.

    Attributes:
        ids: (T, J) int64 in order of choice, -1 = none.
        keep: (T, J) bool, False = chosen, then dropped; None = all kept.
        gates: (T, J) weights with a gradient of their own (SparseMixer); None = the scores at `ids`.
        max_assignments: a static bound on the number of assignments, when it is below T · J.
    """

    ids: Tensor
    keep: Tensor | None = None
    gates: Tensor | None = None
    max_assignments: int | None = None


def wrapped(select: Any) -> list[Any]:
    """The selection and what it wraps, outermost first."""
    chain = [select]
    while (inner := getattr(chain[-1], "select", None) or getattr(chain[-1], "capacity", None)) is not None:
        chain.append(inner)
    return chain


def gates_at(select: Any, ids_TJ: Tensor, scores_TE: Tensor, ctx: Context) -> Tensor | None:
    """(T, J) weights of ids that were given, of a select that makes its own (`gates_at`), wrapped or not; else None."""
    own = getattr(wrapped(select)[-1], "gates_at", None)
    return None if own is None else own(ids_TJ, scores_TE, ctx)
