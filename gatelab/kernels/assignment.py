"""From tensors to the transportation problem and back: the checks, the bounds, the grid, the certificate."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gatelab.kernels.transportation import Grid, Problem, Solver, violation

Bounds = Tensor | int | tuple[Tensor | int, Tensor | int] | None


class Assignment(NamedTuple):
    """An optimal assignment with its proof; T tokens, E experts, k experts per token.

    Attributes:
        expert_ids: (T, k) int64: each token's experts, the best `score − price` first; −1 in masked rows.
        prices: (E,) float64, mean 0: the dual prices. Each token's experts are a top-k set of `scores − prices`.
        value: () float64, the sum of the chosen scores, forbidden pairs left out.
        gap: () float64, the total violation of the optimality conditions: 0, or the call would have raised.
        num_forbidden: () int64, how many chosen pairs have the score −inf: as few as the bounds allow.
    """

    expert_ids: Tensor
    prices: Tensor
    value: Tensor
    gap: Tensor
    num_forbidden: Tensor


def assigned(
    solver: Solver,
    scores: Tensor,
    capacity: Bounds,
    k: int,
    prices: Tensor | None,
    token_mask: Tensor | None,
    strict: bool,
) -> Assignment:
    """`gatelab.kernels.balanced_assignment` with the solver of one backend."""
    values = scores.detach().cpu()
    real = None if token_mask is None else token_mask.detach().cpu().bool()
    if real is not None:
        values = values[real]
    values = values.contiguous() if values.dtype == torch.float64 else values.float().contiguous()
    T, E = values.shape
    lower, upper = _bounds(capacity, T, E, k)
    problem = Problem(values.numpy(), lower, upper, k, _grid(values))
    starts = np.zeros((1, E)) if prices is None else np.stack([np.zeros(E), _start(prices, problem.grid)])
    if T:
        ids, found = solver.solve(problem, starts)
        found = found - problem.grid.round(found.mean())  # only differences count, and carried on they shall not drift
        gap = violation(problem, ids, found, solver)
        if gap != 0:
            raise RuntimeError(f"balanced_assignment missed the optimum by {gap}; please report the scores")
    else:
        ids, found, gap = np.empty((0, k), np.int64), starts[-1], 0.0
    expert_ids = torch.from_numpy(np.ascontiguousarray(ids))
    held = values.gather(1, expert_ids).numpy()
    num_forbidden = 0
    if problem.grid.forbidden:
        allowed = held > -np.inf
        num_forbidden = held.size - np.count_nonzero(allowed)
        if strict and num_forbidden:
            t, c = np.argwhere(~allowed)[0]
            raise ValueError(
                f"scores forbids too much: {num_forbidden} pairs of -inf cannot be avoided under these bounds (one "
                f"takes expert {ids[t, c]}); allow more pairs, widen capacity, or pass strict=False"
            )
        held = np.where(allowed, held, 0.0)
    value = held.sum(dtype=np.float64)
    if real is not None:
        expert_ids = torch.full((len(real), k), -1).masked_scatter_(real[:, None], expert_ids)
    exact = torch.float32 if scores.device.type == "mps" else torch.float64  # mps has no float64
    return Assignment(
        expert_ids.to(scores.device),
        torch.from_numpy(found).to(scores.device, exact),
        torch.tensor(value, dtype=exact, device=scores.device),
        torch.tensor(gap, dtype=exact, device=scores.device),
        torch.tensor(num_forbidden, device=scores.device),
    )


def _grid(scores: Tensor) -> Grid:
    T, E = scores.shape
    low, high = (float(x) for x in scores.aminmax()) if T else (0.0, 0.0)
    if math.isnan(high) or high == math.inf:
        bad = scores.isnan() if math.isnan(high) else scores == math.inf
        raise ValueError(f"scores contains {high} (token {_first_row(bad)}); pass finite scores, -inf where forbidden")
    forbidden = 0.0
    if low == -math.inf:
        allowed = scores > -math.inf
        if not allowed.any(dim=1).all():
            row = _first_row(~allowed.any(dim=1, keepdim=True))
            raise ValueError(f"scores[{row}] is all -inf; allow the token an expert, or leave it out with token_mask")
        low = float(scores.masked_fill(~allowed, math.inf).amin())
        # A cycle of moves passes an expert at most once: it changes the finite part by less than 4·E·max|s|.
        forbidden = -math.ldexp(1.0, math.frexp(4 * E * (max(abs(low), abs(high)) or 1.0))[1])
    exponent = max(math.frexp(max(abs(low), abs(high), -forbidden))[1], -900)
    if exponent > 960:
        raise ValueError(f"scores reaches {max(abs(low), abs(high)):.1e}; scale it below 2**940")
    unit = math.ldexp(1.0, exponent - (49 - (E - 1).bit_length()))
    return Grid(unit, 1.5 * 2.0**52 * unit, forbidden)


def _first_row(bad: Tensor) -> int:
    return int(bad.any(dim=1).nonzero()[0])


def _bounds(capacity: Bounds, T: int, E: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    if capacity is None:
        floor, extra = divmod(k * T, E)
        return np.full(E, floor), np.full(E, floor + (extra > 0))
    if isinstance(capacity, tuple):
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
    bound = torch.as_tensor(bound)
    if bound.is_floating_point() or bound.is_complex() or bound.dtype == torch.bool or bound.shape not in ((), (E,)):
        raise ValueError(f"capacity is {bound.dtype} of shape {tuple(bound.shape)}; pass an int or ({E},) integers")
    bounds = bound.detach().cpu().long().expand(E).numpy()
    if (bounds < 0).any():
        raise ValueError(f"capacity is negative for expert {int(np.argmax(bounds < 0))}; loads start at 0")
    return bounds


def _start(prices: Tensor, grid: Grid) -> np.ndarray:
    """Start prices on the grid, inside the range where arithmetic stays exact: any are valid."""
    start = prices.detach().cpu().double().numpy()
    if not np.isfinite(start).all():
        raise ValueError(
            f"prices contains {start[~np.isfinite(start)][0]}; pass finite prices, or None to start afresh"
        )
    limit = 2.0**49 * grid.unit
    return grid.round(np.clip(start - start.mean(), -limit, limit))
