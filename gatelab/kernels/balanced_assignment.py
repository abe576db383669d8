"""Exact balanced assignment of tokens to experts."""

import torch
from torch import Tensor

from gatelab.kernels.assignment import Assignment, Bounds
from gatelab.kernels.backend import implementation


def balanced_assignment(
    scores: Tensor,
    *,
    capacity: Bounds = None,
    k: int = 1,
    prices: Tensor | None = None,
    token_mask: Tensor | None = None,
    strict: bool = False,
) -> Assignment:
    """Give every token k experts under load bounds so that the sum of the chosen scores is the largest possible.

    This is the linear program of BASE layers (Lewis et al. 2021, arXiv 2103.16716, section 3.1), solved exactly as a
    transportation problem and certified inside the call. Not differentiable; `scores` is not changed. The problem is
    solved on the CPU whatever the device.

    Scores are rounded to multiples of u = 2^(exponent of max|s| − 49 + ceil log2 E), and the answer is exact on that
    grid: `value` is within k·T·u of the optimum, and equal to it where the scores lie on the grid, as float32 scores
    do that are no smaller than 2^(ceil log2 E − 25) of the largest. Where there are −inf, u is 4·E to 16·E times
    coarser.

    Args:
        scores: (T, E), any float dtype and device; −inf marks a forbidden pair.
        capacity: None: every expert gets floor or ceil of k·T/E tokens. An int or (E,) integers: upper bounds, lower
            bounds 0. A pair of those: lower and upper bounds.
        k: experts per token, 1…E.
        prices: (E,) start prices, e.g. those of the last batch. They change the speed, and the choice among equally
            good assignments, never the value.
        token_mask: (T,), True (nonzero) = a real token. The others leave the problem.
        strict: raise if a forbidden pair cannot be avoided, instead of counting it.

    Raises:
        ValueError: a shape or dtype is wrong, k is not in 1…E, `scores` contains NaN, +inf or a row of −inf, `prices`
            is not finite, `capacity` cannot be met, or `strict` and a forbidden pair cannot be avoided.
        RuntimeError: the certificate does not hold (a bug in this library).
    """
    if scores.ndim != 2 or not scores.is_floating_point() or scores.shape[1] == 0:
        raise ValueError(f"scores is {scores.dtype} of shape {tuple(scores.shape)}; pass a float (T, E) tensor, E > 0")
    T, E = scores.shape
    if not 1 <= k <= E:
        raise ValueError(f"k={k} experts per token do not fit E={E} experts; choose 1 <= k <= {E}")
    if prices is not None and (prices.shape != (E,) or not prices.is_floating_point()):
        raise ValueError(f"prices is {prices.dtype} of shape {tuple(prices.shape)}; pass ({E},) floats or None")
    if token_mask is not None and token_mask.shape != (T,):
        raise ValueError(f"token_mask has shape {tuple(token_mask.shape)}; pass ({T},), True for real tokens")
    lower, upper = capacity if isinstance(capacity, tuple) else (None, capacity)
    lower, upper = (torch.tensor(bound) if isinstance(bound, int) else bound for bound in (lower, upper))
    prices = None if prices is None else prices.detach()
    return Assignment(*_assigned(scores.detach(), lower, upper, k, prices, token_mask, strict))


def _solved(
    scores: Tensor,
    lower: Tensor | None,
    upper: Tensor | None,
    k: int,
    prices: Tensor | None,
    token_mask: Tensor | None,
    strict: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    solve = implementation("balanced_assignment", "cpu")  # there it runs, whatever the device
    capacity = upper if lower is None else (lower, upper)
    return tuple(solve(scores, capacity=capacity, k=k, prices=prices, token_mask=token_mask, strict=strict))


def _shapes(scores, lower, upper, k, prices, token_mask, strict):
    T, E = scores.shape
    exact = torch.float32 if scores.device.type == "mps" else torch.float64
    return (
        scores.new_empty((T, k), dtype=torch.int64),
        scores.new_empty(E, dtype=exact),
        scores.new_empty((), dtype=exact),
        scores.new_empty((), dtype=exact),
        scores.new_empty((), dtype=torch.int64),
    )


# An operator, opaque to the compiler: its shapes are known, the solver behind it is not torch. Not by `custom_op`,
# which takes twice as long to call: it matters where the solver needs 0.1 ms.
_LIBRARY = torch.library.Library("gatelab", "FRAGMENT")
_LIBRARY.define(
    "balanced_assignment(Tensor scores, Tensor? lower, Tensor? upper, int k, Tensor? prices, Tensor? token_mask, "
    "bool strict) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_LIBRARY.impl("balanced_assignment", _solved, "CompositeExplicitAutograd")
torch.library.register_fake("gatelab::balanced_assignment", _shapes, lib=_LIBRARY)
_assigned = torch.ops.gatelab.balanced_assignment.default
