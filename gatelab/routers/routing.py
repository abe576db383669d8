"""`Routing`: the one thing a gate hands on.

It is the sparse (T, E) assignment matrix stored expert by expert (the CSC layout), with what losses, metrics and state
updates need beside it. The expert layer sees nothing else of a gate.

Axes: T tokens, E experts, K experts per token, N assignments kept, M >= N entries stored, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gatelab import kernels

if TYPE_CHECKING:
    from scipy.sparse import csc_matrix


@dataclass(frozen=True, eq=False)
class Summary:
    """What a state update needs of one forward: small, detached, and ready to be reduced over ranks.

    Attributes:
        tokens_per_expert: (E,) float32, assignments kept.
        requested: (E,) float32, assignments wanted before any drop.
        num_tokens: () float32, real tokens.
        statistics: what the parts wrote, each a small tensor that may be averaged over micro-batches and ranks.
    """

    tokens_per_expert: Tensor
    requested: Tensor
    num_tokens: Tensor
    statistics: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Routing:
    """Which tokens go to which experts, and with what weight.

    Entries `expert_offsets[e]:expert_offsets[e + 1]` belong to expert e, their tokens ascending. What lies past
    `expert_offsets[-1]` is a tail that keeps the length static (nothing waits for the device): its token indices are
    valid, its weights 0, and it must never contribute.

    Attributes:
        token_index: (M,) int64, the token of each entry.
        expert_offsets: (E + 1,) int64; N = expert_offsets[-1].
        weights: (M,) float32 combine weights, differentiable.
        choice: (M,) int64, which of its token's choices an entry is (0 = first).
        num_tokens: T, padding included.
        token_mask: (T,) bool, True = a real token, or None when all are.
        router_logits: (T, E) float32, always raw: before activation, noise, bias and mask.
        scores: (T, E) float32, after noise and activation, before selection.
        probabilities: (T, E) float32, rows that sum to 1, for losses.
        requested: (E,) int64, assignments wanted before any drop.
        losses: name -> scalar, each already times its coefficient.
        statistics: name -> detached tensor that `Router.update` needs from this forward.
        weights_on_input: True when the weight multiplies what goes *into* the expert (Llama 4).
    """

    token_index: Tensor
    expert_offsets: Tensor
    weights: Tensor
    choice: Tensor
    num_tokens: int
    token_mask: Tensor | None
    router_logits: Tensor
    scores: Tensor
    probabilities: Tensor
    requested: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)
    weights_on_input: bool = False

    @property
    def num_experts(self) -> int:
        """E."""
        return self.expert_offsets.shape[0] - 1

    @property
    def tokens_per_expert(self) -> Tensor:
        """(E,) int64, the load of each expert: assignments kept."""
        return self.expert_offsets.diff()

    @property
    def dropped(self) -> Tensor:
        """(E,) int64, assignments requested and not kept."""
        return self.requested - self.tokens_per_expert

    @property
    def live(self) -> Tensor:
        """(M,) bool, False in the tail."""
        return self._positions < self.expert_offsets[-1]

    @property
    def expert_index(self) -> Tensor:
        """(M,) int64, the expert of each entry; E in the tail."""
        return torch.searchsorted(self.expert_offsets[1:].contiguous(), self._positions, right=True)

    @property
    def experts_per_token(self) -> Tensor:
        """(T,) int64, how many experts each token reaches."""
        counts = self.token_index.new_zeros(self.num_tokens)
        return counts.index_add(0, self.token_index, self.live.to(torch.int64))

    @property
    def aux_loss(self) -> Tensor:
        """(), the sum of `losses`."""
        return sum(self.losses.values(), start=self.router_logits.new_zeros(()))

    @property
    def _positions(self) -> Tensor:
        return torch.arange(self.token_index.shape[0], device=self.token_index.device)

    def dispatch(self, x_TD: Tensor) -> Tensor:
        """Copy each token's vector to the experts it goes to.

        Args:
            x_TD: (T, D).

        Returns:
            (M, D) in the order of `token_index`, tail rows included (their content is arbitrary).
        """
        rows_MD = x_TD[self.token_index]
        if self.weights_on_input:
            rows_MD = (rows_MD * self.weights[:, None]).to(x_TD.dtype)
        return rows_MD

    def combine(self, rows_MD: Tensor) -> Tensor:
        """Bring the experts' outputs back to their tokens: y_t = Σ weight · row over t's entries.

        Args:
            rows_MD: (M, D), one row per entry, tail included.

        Returns:
            (T, D) in the dtype of `rows_MD`, accumulated in at least float32; tokens without an expert get zeros.
        """
        # Selecting before multiplying keeps NaN in tail rows out of y and of the weights' gradient: 0 · NaN is NaN.
        rows = torch.where(self.live[:, None], rows_MD, 0).to(torch.promote_types(rows_MD.dtype, torch.float32))
        if not self.weights_on_input:
            rows = rows * self.weights[:, None]
        y_TD = rows.new_zeros(self.num_tokens, rows_MD.shape[1])
        if rows.is_cuda:  # index_add_ adds in any order there; index_put_ sorts first and repeats itself to the bit
            y_TD = y_TD.index_put((self.token_index,), rows, accumulate=True)
        else:
            y_TD = y_TD.index_add(0, self.token_index, rows)
        return y_TD.to(rows_MD.dtype)

    def topk(self) -> tuple[Tensor, Tensor]:
        """The token-wise view.

        Returns:
            topk_weights (T, K) and topk_ids (T, K) in order of choice, where K is the most experts any token has;
            weight 0 and id -1 where a token has fewer.
        """
        per_token = self.experts_per_token
        K = int(per_token.max()) if self.num_tokens else 0
        routing = self.compact()
        width = int(routing.choice.max()) + 1 if routing.choice.numel() else 1
        order = torch.argsort(routing.token_index * width + routing.choice)
        token = routing.token_index[order]
        slot = routing._positions - (per_token.cumsum(0) - per_token)[token]
        ids_TK = token.new_full((self.num_tokens, K), -1)
        ids_TK[token, slot] = routing.expert_index[order]
        weights_TK = routing.weights.new_zeros(self.num_tokens, K)
        return weights_TK.index_put((token, slot), routing.weights[order]), ids_TK

    def to_dense(self) -> Tensor:
        """(T, E) combine weights, 0 where a token does not go; differentiable."""
        E = self.num_experts
        flat = self.weights.new_zeros(self.num_tokens * (E + 1))
        cells = self.token_index * (E + 1) + self.expert_index  # the tail falls into the extra column
        return flat.scatter_add(0, cells, self.weights).view(self.num_tokens, E + 1)[:, :E]

    def to_scipy(self) -> csc_matrix:
        """The (T, E) combine weights as a `scipy.sparse.csc_matrix`, whose arrays are this object's own."""
        from scipy.sparse import csc_matrix

        routing = self.compact()
        arrays = (routing.weights, routing.token_index, routing.expert_offsets)
        data = tuple(array.detach().cpu().numpy() for array in arrays)
        return csc_matrix(data, shape=(self.num_tokens, self.num_experts))

    def compact(self) -> Routing:
        """The same routing without its tail. Waits for the device."""
        N = int(self.expert_offsets[-1])
        if self.token_index.shape[0] == N:
            return self
        return replace(self, token_index=self.token_index[:N], weights=self.weights[:N], choice=self.choice[:N])

    def summary(self) -> Summary:
        """A few detached (E,) tensors and scalars: what `Router.update` takes and data parallelism reduces."""
        if self.token_mask is None:
            num_real = torch.tensor(float(self.num_tokens), device=self.requested.device)
        else:
            num_real = self.token_mask.sum().float()
        return Summary(
            tokens_per_expert=self.tokens_per_expert.float(),
            requested=self.requested.float(),
            num_tokens=num_real,
            statistics={name: value.detach() for name, value in self.statistics.items()},
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Write to a file (npz, versioned, no pickle; the tail left out): see `gatelab.routers.recording`."""
        from gatelab.routers.recording import save_routing

        save_routing(self, path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Routing:
        """Read what `save` wrote, onto the CPU.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is truncated, not a saved routing, of another version, too large, or contradicts itself.
        """
        from gatelab.routers.recording import load_routing

        return load_routing(path)

    @classmethod
    def from_topk(
        cls,
        topk_ids: Tensor,
        topk_weights: Tensor,
        num_experts: int,
        *,
        keep: Tensor | None = None,
        max_assignments: int | None = None,
        token_mask: Tensor | None = None,
        router_logits: Tensor | None = None,
        scores: Tensor | None = None,
        probabilities: Tensor | None = None,
        requested: Tensor | None = None,
        losses: dict[str, Tensor] | None = None,
        statistics: dict[str, Tensor] | None = None,
        weights_on_input: bool = False,
    ) -> Routing:
        """Build from each token's choices.

        Args:
            topk_ids: (T, K) int64 in order of choice; -1 = none.
            topk_weights: (T, K) combine weights.
            num_experts: E.
            keep: (T, K) bool; False = chosen, then dropped.
            max_assignments: a bound on N known beforehand, which shortens the tail; default T·K.
            token_mask: (T,) bool; assignments of masked tokens are ignored.
            router_logits, scores, probabilities: (T, E); default zeros, the dense weights, and their normalised rows.
            requested: (E,); default the number of times each expert stands in `topk_ids`.
            losses, statistics, weights_on_input: as the attributes.

        Raises:
            ValueError: the shapes of ids and weights differ.
        """
        if topk_ids.shape != topk_weights.shape or topk_ids.dim() != 2:
            shapes = f"{tuple(topk_ids.shape)} and {tuple(topk_weights.shape)}"
            raise ValueError(f"topk_ids and topk_weights have shapes {shapes}; both must be (T, K)")
        T = topk_ids.shape[0]
        valid = topk_ids >= 0
        if token_mask is not None:
            valid = valid & token_mask[:, None]
        if requested is None:
            requested = count_experts(torch.where(valid, topk_ids, -1), num_experts)
        if keep is not None:
            valid = valid & keep
        order, expert_offsets = kernels.group_by_expert(torch.where(valid, topk_ids, -1), num_experts)
        routing = cls.from_groups(
            order if max_assignments is None else order[:max_assignments],
            expert_offsets,
            torch.where(valid, topk_weights, 0),
            token_mask=token_mask,
            router_logits=topk_weights.new_zeros(T, num_experts) if router_logits is None else router_logits,
            scores=topk_weights if scores is None else scores,
            probabilities=topk_weights if probabilities is None else probabilities,
            requested=requested,
            losses=losses or {},
            statistics=statistics or {},
            weights_on_input=weights_on_input,
        )
        if scores is None or probabilities is None:
            dense = routing.to_dense().detach()
            rows = dense / dense.sum(1, keepdim=True).clamp(min=torch.finfo(dense.dtype).tiny)
            routing = replace(
                routing,
                scores=dense if scores is None else scores,
                probabilities=rows if probabilities is None else probabilities,
            )
        return routing

    @classmethod
    def from_groups(cls, order: Tensor, expert_offsets: Tensor, topk_weights: Tensor, **fields: Any) -> Routing:
        """Build from choices that are sorted by expert.

        Args:
            order, expert_offsets: what `kernels.group_by_expert` answers for the (T, K) ids; its end may be cut off.
            topk_weights: (T, K) combine weights, 0 where no expert is.
            **fields: the other attributes.
        """
        T, K = topk_weights.shape
        token_index = order // max(K, 1)
        return cls(
            token_index=token_index,
            expert_offsets=expert_offsets,
            weights=topk_weights.flatten()[order],
            choice=order - token_index * K,  # a remainder takes three times as long
            num_tokens=T,
            **fields,
        )

    @classmethod
    def from_mask(cls, mask: Tensor, weights: Tensor, **kwargs) -> Routing:
        """Build from a (T, E) bool mask of assignments and (T, E) weights; the heaviest expert is the first choice.

        The other keywords are those of `from_topk`.
        """
        ids, gates = ranked(mask, weights)
        return cls.from_topk(ids, gates, mask.shape[1], **kwargs)

    @classmethod
    def from_expert_choice(cls, token_ids: Tensor, weights: Tensor, num_tokens: int, **kwargs) -> Routing:
        """Build from each expert's choices.

        Args:
            token_ids: (E, C) int64, the tokens each expert takes, in any order; -1 = an empty slot.
            weights: (E, C) combine weights.
            num_tokens: T.
            **kwargs: those of `from_topk`.
        """
        E, C = token_ids.shape
        cells = torch.where(token_ids >= 0, token_ids, num_tokens)
        expert = torch.arange(E, device=cells.device)[:, None].expand(E, C)
        dense = weights.new_zeros(num_tokens + 1, E).index_put((cells, expert), weights)
        mask = torch.zeros_like(dense, dtype=torch.bool).index_put((cells, expert), token_ids >= 0)
        return cls.from_mask(mask[:num_tokens], dense[:num_tokens], max_assignments=E * C, **kwargs)


def count_experts(ids_TK: Tensor, num_experts: int) -> Tensor:
    """(E,) int64, how often each expert stands in `ids_TK`; -1 is not counted."""
    counts = ids_TK.new_zeros(num_experts + 1)
    ids = ids_TK.flatten()
    return counts.scatter_add(0, torch.where(ids >= 0, ids, num_experts), torch.ones_like(ids))[:num_experts]


def ranked(mask_TE: Tensor, scores_TE: Tensor) -> tuple[Tensor, Tensor]:
    """(T, E) ids of the marked experts in descending score, -1 past the last, and their scores (0 past the last)."""
    # Finite for every marked expert, so that none sorts after an unmarked one.
    lowest = torch.finfo(scores_TE.dtype).min
    key = torch.where(mask_TE, scores_TE.detach().clamp(min=lowest), -torch.inf)
    ids = key.argsort(dim=1, descending=True, stable=True)
    valid = mask_TE.gather(1, ids)
    return torch.where(valid, ids, -1), torch.where(valid, scores_TE.gather(1, ids), 0)


pytree.register_dataclass(Routing)
pytree.register_dataclass(Summary)
