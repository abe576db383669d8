"""`SoftRouting`: the same verbs as `Routing` where every token is a little of everywhere (Soft MoE).

Experts see slots, not tokens: each slot is a mixture of a sequence's tokens, and each token's output is a mixture of
all slots' outputs. Axes: B sequences of S tokens, T = B·S, E experts of P slots each per sequence, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gatelab.routers.routing import Routing, Summary

if TYPE_CHECKING:
    from scipy.sparse import csc_matrix


@dataclass(frozen=True, eq=False)
class SoftRouting:
    """How much of each token goes into each slot, and how much of each slot comes back.

    Attributes:
        dispatch_weights: (B, S, E, P) float32, sums to 1 over the real tokens of a sequence; 0 at masked tokens.
        combine_weights: (B, S, E, P) float32, sums to 1 over all slots of its sequence; 0 at masked tokens.
        router_logits: (T, E) float32, the logsumexp of the logits of an expert's slots.
        token_mask: (T,) bool, True = a real token, or None when all are.
        losses, statistics: as in `Routing`.
    """

    dispatch_weights: Tensor
    combine_weights: Tensor
    router_logits: Tensor
    token_mask: Tensor | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)
    weights_on_input: bool = False

    @property
    def num_tokens(self) -> int:
        """T, padding included."""
        return self.router_logits.shape[0]

    @property
    def num_experts(self) -> int:
        """E."""
        return self.router_logits.shape[1]

    @property
    def expert_offsets(self) -> Tensor:
        """(E + 1,) int64: expert e owns the rows `expert_offsets[e]:expert_offsets[e + 1]`, B·P each."""
        B, _, E, P = self.dispatch_weights.shape
        return torch.arange(E + 1, device=self.dispatch_weights.device) * (B * P)

    @property
    def tokens_per_expert(self) -> Tensor:
        """(E,) int64, the rows each expert processes: its slots, not tokens."""
        return self.expert_offsets.diff()

    @property
    def requested(self) -> Tensor:
        """(E,) int64, as `tokens_per_expert`: nothing is dropped."""
        return self.tokens_per_expert

    @property
    def dropped(self) -> Tensor:
        """(E,) int64, zeros."""
        return self.requested - self.tokens_per_expert

    @property
    def experts_per_token(self) -> Tensor:
        """(T,) int64: E for real tokens, 0 for masked ones."""
        every = torch.full((self.num_tokens,), self.num_experts, device=self.router_logits.device)
        return every if self.token_mask is None else every * self.token_mask

    @property
    def live(self) -> Tensor:
        """(M,) bool, True: every slot counts."""
        B, _, E, P = self.dispatch_weights.shape
        return torch.ones(E * B * P, dtype=torch.bool, device=self.dispatch_weights.device)

    @property
    def scores(self) -> Tensor:
        """(T, E), as `to_dense()`."""
        return self.to_dense()

    @property
    def probabilities(self) -> Tensor:
        """(T, E), as `to_dense()`, whose rows sum to 1."""
        return self.to_dense()

    @property
    def aux_loss(self) -> Tensor:
        """(), the sum of `losses`."""
        return sum(self.losses.values(), start=self.router_logits.new_zeros(()))

    def dispatch(self, x_TD: Tensor) -> Tensor:
        """Mix each slot from the tokens of its sequence.

        Args:
            x_TD: (T, D).

        Returns:
            (E·B·P, D) in the dtype of `x_TD`, expert by expert; mixed in at least float32.
        """
        B, S, E, P = self.dispatch_weights.shape
        wide_TD = x_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
        if self.token_mask is not None:
            wide_TD = torch.where(self.token_mask[:, None], wide_TD, 0)  # 0 · NaN is NaN
        rows_EBPD = torch.einsum(
            "bsep,bsd->ebpd", self.dispatch_weights.to(wide_TD), wide_TD.reshape(B, S, x_TD.shape[1])
        )
        return rows_EBPD.reshape(E * B * P, x_TD.shape[1]).to(x_TD.dtype)

    def combine(self, rows_MD: Tensor) -> Tensor:
        """Mix each token's output from the slots' outputs.

        Args:
            rows_MD: (E·B·P, D), in the order `dispatch` gives.

        Returns:
            (T, D) in the dtype of `rows_MD`; zeros at masked tokens.
        """
        B, S, E, P = self.combine_weights.shape
        rows_EBPD = rows_MD.to(torch.promote_types(rows_MD.dtype, torch.float32)).view(E, B, P, rows_MD.shape[1])
        y_BSD = torch.einsum("bsep,ebpd->bsd", self.combine_weights.to(rows_EBPD), rows_EBPD)
        return y_BSD.reshape(B * S, rows_MD.shape[1]).to(rows_MD.dtype)

    def slots(self) -> Routing:
        """The slots as the tokens of a plain Routing, each going to its own expert with weight 1."""
        offsets = self.expert_offsets
        M = self.live.shape[0]
        ones = self.combine_weights.new_ones(M)
        expert = torch.arange(M, device=offsets.device) // max(M // self.num_experts, 1)
        return Routing.from_topk(expert[:, None], ones[:, None], self.num_experts)

    def to_dense(self) -> Tensor:
        """(T, E) combine weights, each expert's slots summed; differentiable."""
        return self.combine_weights.sum(-1).view(self.num_tokens, self.num_experts)

    def topk(self) -> tuple[Tensor, Tensor]:
        """Weights and ids (T, E) of all experts, the heaviest first; weight 0 and id -1 at masked tokens."""
        weights_TE, ids_TE = self.to_dense().sort(dim=1, descending=True, stable=True)
        if self.token_mask is not None:
            ids_TE = torch.where(self.token_mask[:, None], ids_TE, -1)
        return weights_TE, ids_TE

    def to_scipy(self) -> csc_matrix:
        """`to_dense()` as a `scipy.sparse.csc_matrix`."""
        from scipy.sparse import csc_matrix

        return csc_matrix(self.to_dense().detach().cpu().numpy())

    def compact(self) -> SoftRouting:
        """Itself: there is no tail."""
        return self

    def summary(self) -> Summary:
        """As that of a Routing, counting rows."""
        real = torch.tensor(self.num_tokens) if self.token_mask is None else self.token_mask.sum()
        load = self.tokens_per_expert.float()
        return Summary(load, load, real.to(load), {name: value.detach() for name, value in self.statistics.items()})


pytree.register_dataclass(SoftRouting)
