"""A fixed table from token id to experts, and ways to build one."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gatelab.routers.context import Context, Selection
from gatelab.routers.guarantees import Guarantees


class HashTable(nn.Module):
    """Experts looked up by token id. The router must be called with `token_ids`.

    State: `table` (V, K) int64, fixed, saved with the gate.

    Args:
        table: (V, K) expert ids, one row per token id; no expert twice in a row.
        num_experts: E.

    Raises:
        ValueError: the table is not a matrix of expert ids, or names an expert twice for one token; at the call, there
            are no token ids, or one is outside the table (looked at on the CPU in eager mode).

    Source: Hash Layers, Roller et al. 2021, arXiv 2106.04426, §3; K > 1: DeepSeek-V4's first three layers.
    """

    table: Tensor

    def __init__(self, table: Tensor, num_experts: int) -> None:
        super().__init__()
        if table.dim() != 2 or table.is_floating_point():
            raise ValueError(f"table has shape {tuple(table.shape)} and dtype {table.dtype}; pass (V, K) expert ids")
        self.k = table.shape[1]
        if table.device.type != "meta" and table.numel():
            low, high = (int(v) for v in torch.aminmax(table))
            if low < 0 or high >= num_experts:
                raise ValueError(f"table holds ids from {low} to {high}; use 0 to {num_experts - 1}")
            ordered = table.sort(dim=1).values
            twice = (ordered[:, 1:] == ordered[:, :-1]).any(1)
            if bool(twice.any()):
                row = int(twice.to(torch.int64).argmax())
                raise ValueError(f"table names an expert twice for token id {row}; the experts of a row must differ")
        self.register_buffer("table", table.to(torch.int64))

    def forward(self, scores_TE: Tensor, ctx: Context) -> Selection:
        if ctx.token_ids is None:
            raise ValueError(
                "token_ids is missing; this gate routes by token id: call it with token_ids=(B, S) integers"
            )
        ids_T = ctx.token_ids.flatten().to(torch.int64)
        if ctx.mask_T is not None:
            ids_T = torch.where(ctx.mask_T, ids_T, 0)
        V = self.table.shape[0]
        if ids_T.device.type == "cpu" and not torch.compiler.is_compiling() and ids_T.numel():
            low, high = (int(v) for v in torch.aminmax(ids_T))
            if low < 0 or high >= V:
                raise ValueError(f"token_ids holds {low if low < 0 else high}; the table has rows 0 to {V - 1}")
        return Selection(self.table[ids_T])

    def guarantees(self, training: bool) -> Guarantees:
        return Guarantees(experts_per_token=self.k)

    def extra_repr(self) -> str:
        return f"vocab_size={self.table.shape[0]}, k={self.k}"


def hash_table(
    num_experts: int,
    k: int,
    vocab_size: int,
    *,
    table: Tensor | None = None,
    frequencies: Sequence[float] | Tensor | None = None,
) -> HashTable:
    """The given table, one balanced for the frequencies, or a random one, on torch's default device.

    Raises:
        ValueError: as `HashTable`, or the given table has not k experts a row.
    """
    if table is None and frequencies is not None:
        table = balanced_table(frequencies, num_experts, k)
    elif table is None:
        table = random_table(vocab_size, num_experts, k)
    elif table.dim() == 2 and table.shape[1] != k:
        raise ValueError(f"table has {table.shape[1]} experts per token id; pass top_k={table.shape[1]} with it")
    made = HashTable(table, num_experts)
    return made.to(torch.get_default_device())


def random_table(vocab_size: int, num_experts: int, k: int = 1) -> Tensor:
    """(V, K) int64 on the CPU: k distinct experts for each token id, uniform, from torch's default generator."""
    chosen: list[Tensor] = []
    for j in range(k):
        # Uniform over the E - j experts not chosen yet: step over those that are, from the lowest.
        expert_V = torch.randint(num_experts - j, (vocab_size,), device="cpu")
        if chosen:
            for earlier_V in torch.stack(chosen).sort(dim=0).values:
                expert_V = expert_V + (expert_V >= earlier_V).to(torch.int64)
        chosen.append(expert_V)
    return torch.stack(chosen, dim=1)


def balanced_table(frequencies: Sequence[float] | Tensor, num_experts: int, k: int = 1) -> Tensor:
    """(V, K) int64 on the CPU: token ids from the most frequent down, each to the k least loaded experts.

    Args:
        frequencies: (V,) how often each token id occurs.
        num_experts: E.
        k: experts per token.

    Source: Roller et al. 2021, §3.1, "balanced assignment".
    """
    weights = [float(f) for f in frequencies]
    table = torch.empty(len(weights), k, dtype=torch.int64, device="cpu")
    heap = [(0.0, e) for e in range(num_experts)]
    for token in sorted(range(len(weights)), key=lambda t: -weights[t]):
        least = [heapq.heappop(heap) for _ in range(k)]
        table[token] = torch.tensor([e for _, e in least], device="cpu")
        for load, e in least:
            heapq.heappush(heap, (load + weights[token], e))
    return table
