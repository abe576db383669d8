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
        hidden_states: (B, S, D) in the model's dtype, zero at masked tokens; `hidden` is the same in the gate's.
        num_experts: E.
        dtype: the router's `gate_dtype`; None = that of `hidden_states`.
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
        balance: (), what `SwitchLoss` multiplies, over the batch; None where no kernel has computed it.
        statistics: one dict that every part may write; detached small tensors, for `update`.
    """

    hidden_states: Tensor
    num_experts: int
    dtype: torch.dtype | None = None
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
    balance: Tensor | None = None
    statistics: dict[str, Tensor] = field(default_factory=dict)
    _hidden: Tensor | None = field(default=None, init=False, repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(B, S); T = B · S."""
        return self.hidden_states.shape[0], self.hidden_states.shape[1]

    @property
    def hidden(self) -> Tensor:
        """(B, S, D) float32 (or the router's `gate_dtype`), cast when first asked for."""
        if self._hidden is None:
            self._hidden = self.hidden_states.to(self.dtype or self.hidden_states.dtype)
        return self._hidden

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
        return self.score(replace(self, hidden_states=hidden))

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
        complete: promises that no id is -1, so that nothing has to be masked.
    """

    ids: Tensor
    keep: Tensor | None = None
    gates: Tensor | None = None
    max_assignments: int | None = None
    complete: bool = False


def promises(part: Any, name: str) -> bool:
    """Whether the part's own class says so: what holds of a score need not hold of one that inherits from it."""
    return getattr(part, name, False) and name in vars(type(part))


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
