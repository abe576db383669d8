"""Which tokens compete: those of a row, or those of the batch."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from gatelab.routers.context import Context

Group = Literal["sequence", "batch"]


def check_group(group: str) -> None:
    """Raise ValueError unless `group` is `sequence` or `batch`."""
    if group not in ("sequence", "batch"):
        raise ValueError(f"group={group!r} is unknown; choose 'sequence' (each row by itself) or 'batch'")


def grouped(scores_TE: Tensor, ctx: Context, group: str) -> tuple[Tensor, Tensor | None]:
    """(G, T/G, E) scores and (G, T/G) mask: one group per row, or one for the whole batch."""
    E = scores_TE.shape[1]
    B, S = ctx.shape if group == "sequence" else (1, scores_TE.shape[0])
    return scores_TE.view(B, S, E), None if ctx.token_mask is None else ctx.token_mask.reshape(B, S)
