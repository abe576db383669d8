"""The transportation problem behind `balanced_assignment`: what is asked, on which grid, and who asks wrongly."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Bounds = Tensor | int | tuple[Tensor | int, Tensor | int] | None


class Grid(NamedTuple):
    """Multiples of a power of two, few enough that float64 adds and subtracts them exactly.

    `magic` is 1.5·2⁵² units: adding and subtracting it rounds to the grid. `forbidden` is what −inf becomes: so low
    that one forbidden pair fewer is worth more than all that the other scores can do.
    """

    unit: float
    magic: float
    forbidden: float

    def round(self, values: np.ndarray) -> np.ndarray:
        values = np.where(values == -np.inf, self.forbidden, values.astype(np.float64))
        return (values + self.magic) - self.magic


class Problem(NamedTuple):
    """k experts per token, `lower ≤ load ≤ upper` per expert; `scores` (T, E) float32 or float64, real tokens only."""

    scores: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    k: int
    grid: Grid
    start: np.ndarray | None


def stated(scores: Tensor, capacity: Bounds, k: int, prices: Tensor | None) -> Problem:
    """The problem as NumPy arrays on the CPU, every number in it checked.

    Raises:
        ValueError: as `gatelab.kernels.balanced_assignment` says.
    """
    T, E = scores.shape
    values = scores.detach().cpu()
    values = values.contiguous() if values.dtype == torch.float64 else values.float().contiguous()
    lower, upper = _bounds(capacity, T, E, k)
    grid = _grid(values)
    return Problem(values.numpy(), lower, upper, k, grid, _start(prices, grid))


def _grid(scores: Tensor) -> Grid:
    T, E = scores.shape
    low, high = scores.aminmax() if T else (torch.zeros(()), torch.zeros(()))
    low, high = float(low), float(high)
    if math.isnan(high) or high == math.inf:
        kind, row = ("NaN", scores.isnan()) if math.isnan(high) else ("+inf", scores == math.inf)
        raise ValueError(f"scores contains {kind} (token {_first(row)}); scores must be finite, or -inf for forbidden")
    forbidden = 0.0
    if low == -math.inf:
        allowed = scores > -math.inf
        if not allowed.any(dim=1).all():
            row = _first(~allowed.any(dim=1, keepdim=True))
            raise ValueError(f"scores[{row}] is all -inf; allow the token an expert, or leave it out with token_mask")
        low = float(scores.masked_fill(~allowed, math.inf).amin())
        # A cycle of moves passes an expert at most once: it changes the finite part by less than 4·E·max|s|.
        forbidden = -math.ldexp(1.0, math.frexp(4 * E * (max(abs(low), abs(high)) or 1.0))[1])
    exponent = max(math.frexp(max(abs(low), abs(high), abs(forbidden)))[1], -900)
    if exponent > 960:
        raise ValueError(f"scores reaches {max(abs(low), abs(high)):.1e}; scale it below 2**940")
    unit = math.ldexp(1.0, exponent - (49 - (E - 1).bit_length()))
    return Grid(unit, 1.5 * 2.0**52 * unit, forbidden)


def _first(bad: Tensor) -> int:
    return int(bad.any(dim=1).nonzero()[0])


def _bounds(capacity: Bounds, T: int, E: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    if capacity is None:
        floor, extra = divmod(k * T, E)
        lower, upper = np.full(E, floor), np.full(E, floor + (extra > 0))
    elif isinstance(capacity, tuple):
        lower, upper = (_per_expert(bound, E) for bound in capacity)
    else:
        lower, upper = np.zeros(E, np.int64), _per_expert(capacity, E)
    upper = np.minimum(upper, T)  # a token comes once
    if (lower > upper).any():
        e = int(np.argmax(lower > upper))
        raise ValueError(f"capacity asks {lower[e]} tokens of expert {e}, but at most {upper[e]} can come; lower it")
    if not lower.sum() <= k * T <= upper.sum():
        raise ValueError(
            f"capacity allows {lower.sum()} to {upper.sum()} assignments, but {T} tokens on {k} experts make {k * T}; "
            "change capacity or k"
        )
    return lower, upper


def _per_expert(bound: Tensor | int, E: int) -> np.ndarray:
    if not isinstance(bound, Tensor):
        bound = torch.as_tensor(bound)
    if bound.is_floating_point() or bound.is_complex() or bound.dtype == torch.bool or bound.shape not in ((), (E,)):
        raise ValueError(f"capacity is {bound.dtype} of shape {tuple(bound.shape)}; pass an int or ({E},) integers")
    bound = bound.detach().cpu().long().expand(E).numpy()
    if (bound < 0).any():
        raise ValueError(f"capacity is negative for expert {int(np.argmax(bound < 0))}; loads start at 0")
    return bound


def _start(prices: Tensor | None, grid: Grid) -> np.ndarray | None:
    """Start prices on the grid, inside the range where arithmetic stays exact: any are valid."""
    if prices is None:
        return None
    start = prices.detach().cpu().double().numpy()
    if not np.isfinite(start).all():
        raise ValueError(
            f"prices contains {start[~np.isfinite(start)][0]}; pass finite prices, or None to start afresh"
        )
    limit = 2.0**49 * grid.unit
    return grid.round(np.clip(start - start.mean(), -limit, limit))
