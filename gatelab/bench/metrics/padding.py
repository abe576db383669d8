"""How padding leaves every metric, in one place."""

from __future__ import annotations

from torch import Tensor


def real_rows(rows_TX: Tensor, token_mask: Tensor | None) -> Tensor:
    """Only the rows of real tokens: `(..., T, X)` becomes `(..., T', X)`.

    Args:
        rows_TX: one row per token; those of padding may hold anything, NaN included.
        token_mask: `(T,)`, bool or 0/1, True = a real token; None = all are real.

    Raises:
        ValueError: the mask has another shape.
    """
    if token_mask is None:
        return rows_TX
    num_tokens = rows_TX.shape[-2]
    if token_mask.shape != (num_tokens,):
        shape = tuple(token_mask.shape)
        raise ValueError(f"token_mask has shape {shape}, expected ({num_tokens},): flatten it like the tokens")
    return rows_TX[..., token_mask.bool(), :]
