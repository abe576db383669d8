"""From what experts were given to who was chosen, with what weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gatelab.routers.routing import Routing
from gatelab.zoo.hf.errors import UnsupportedBlock


@dataclass(frozen=True)
class Choices:
    """Which experts the tokens of one batch got, and with what weight.

    Attributes:
        x: (B, S, D) what the block was given.
        ids: (T, K) int64, -1 = none.
        weights: (T, K).
        token_ids: (B, S) for gates that look them up, or None.
        tensors: those of the block that were others in this batch, by name.
    """

    x: Tensor
    ids: Tensor
    weights: Tensor
    token_ids: Tensor | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> Tensor:
        """(T,) bool: rows without a 0 / 0, which some gates make where all scores vanish."""
        return self.weights.isfinite().all(1)


@dataclass(frozen=True)
class ExpertCall:
    """One call of a block's experts.

    Attributes:
        given: (T, D') what they read.
        ids, weights: (T, K), as in `Choices`.
        summed: from what they return to (T, D').
        weights_on_input: what they read is already weighed.
    """

    given: Tensor
    ids: Tensor
    weights: Tensor
    summed: Callable[[Tensor], Tensor]
    weights_on_input: bool = False


def expert_call(x_TD: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExpertCall:
    """Read the arguments of a block's experts.

    They are hidden states with ids and weights (T, K) of the chosen experts, or with a mask (T, 1, E) and weights
    (T, 1); or (E·T, D) hidden states alone, every token for every expert, times its weight.

    Raises:
        UnsupportedBlock: they are none of these.
    """
    hidden, *rest = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)]
    T, width = len(x_TD), hidden.shape[-1]
    if not rest and hidden.shape[0] % T == 0 and width == x_TD.shape[1]:
        return _dense(x_TD, hidden.reshape(-1, T, width))
    ids = next((arg for arg in rest if not arg.is_floating_point()), None)
    weights = next((arg for arg in rest if arg.is_floating_point()), None)
    if ids is None or weights is None or weights.dim() != 2:
        raise UnsupportedBlock("its experts are not given ids and weights of chosen experts")
    if ids.dim() == 3 and ids.shape[:2] == weights.shape:
        ids = torch.where(ids.any(-1), ids.to(torch.int64).argmax(-1), -1)
    if ids.shape != weights.shape:
        raise UnsupportedBlock(f"its experts are given ids {tuple(ids.shape)} and weights {tuple(weights.shape)}")
    return ExpertCall(hidden.reshape(-1, width), ids, weights, lambda answer: answer.reshape(-1, width))


def _dense(x_TD: Tensor, weighed_ETD: Tensor) -> ExpertCall:
    x = x_TD.float()
    dense_TE = ((weighed_ETD * x).sum(-1) / x.square().sum(-1)).T
    K = int((dense_TE != 0).sum(1).max())
    weights, ids = dense_TE.topk(K, dim=1)
    ids = torch.where(weights != 0, ids, -1)
    return ExpertCall(x_TD, ids, weights, lambda answer: answer.reshape(weighed_ETD.shape).sum(0), True)


def marks(ids_TK: Tensor, num_experts: int) -> Tensor:
    """(T, E) bool: the experts of each token, from ids with -1 = none."""
    marked = torch.zeros(len(ids_TK), num_experts + 1, dtype=torch.bool, device=ids_TK.device)
    return marked.scatter(1, torch.where(ids_TK >= 0, ids_TK, num_experts), True)[:, :num_experts]


def dense(ids_TK: Tensor, weights_TK: Tensor, num_experts: int) -> Tensor:
    """(T, E) weights, from ids with -1 = none."""
    columns = torch.where(ids_TK >= 0, ids_TK, num_experts)
    weights = weights_TK.nan_to_num()
    return weights.new_zeros(len(ids_TK), num_experts + 1).scatter_add(1, columns, weights)[:, :num_experts]


def others(ids_TK: Tensor, weights_TK: Tensor, routing: Routing) -> Tensor:
    """(T,) bool: tokens for which we choose other experts, those aside whose weight vanishes in the block's dtype."""
    E, vanishing = routing.num_experts, torch.finfo(weights_TK.dtype).tiny
    matters = (dense(ids_TK, weights_TK, E).abs() > vanishing) | (routing.to_dense().abs() > vanishing)
    return ((marks(ids_TK, E) != marks(routing.topk()[1], E)) & matters).any(1)
