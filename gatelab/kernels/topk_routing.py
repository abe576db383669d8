"""What a gate does once it has its scores: choose, weigh, sort by expert, and measure the balance."""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from gatelab.kernels.backend import backend_for, implementation

Weight = Literal["score", "renormalize", "softmax", "sigmoid"]


class TopKRouting(NamedTuple):
    """What `topk_routing` returns, token by token and expert by expert. Axes: T tokens, K choices, E experts."""

    topk_weights: Tensor  # (T, K), differentiable
    topk_ids: Tensor  # (T, K) int64, in order of choice; −1 for a masked token
    token_index: Tensor  # (T·K,) int64, grouped by expert, ascending inside an expert; those of masked tokens last
    choice: Tensor  # (T·K,) int64, which of its token's choices an entry is
    weights: Tensor  # (T·K,), those of the entries, differentiable
    expert_offsets: Tensor  # (E + 1,) int64, where the entries of each expert start
    requested: Tensor  # (E,) int64, how many there are
    balance: Tensor  # (), E · Σ f_i P_i, differentiable: what the Switch loss multiplies, 1 at perfect balance


def topk_routing(
    scores_TE: Tensor,
    k: int,
    *,
    by_TE: Tensor | None = None,
    probabilities_TE: Tensor | None = None,
    weight: Weight = "score",
    eps: float = 0.0,
    scale: float = 1.0,
    token_mask: Tensor | None = None,
) -> TopKRouting:
    """The k best experts of each token, their weights, the assignments sorted by expert, and how even they are.

    Args:
        scores_TE: (T, E) float32 or float64, what the weights are made of.
        k: 1 to E.
        by_TE: (T, E), what is chosen by, as by `kernels.topk`; no gradient reaches it. Default the scores.
        probabilities_TE: (T, E), the p of which P_i is the mean over real tokens; default the scores.
        weight: from the scores of a token's choices to their weights. `score` leaves them; `renormalize` divides by
            their sum plus `eps` (at least 1e-20); `softmax` over them and `sigmoid` take logits as scores.
        eps: for `renormalize`.
        scale: times the weights.
        token_mask: (T,) bool, True = a real token. The others get ids −1 and weights 0, and no gradient.

    Raises:
        ValueError: a shape or a name does not fit, or `k` is not within 1…E.

    Source: Shazeer et al. 2017, arXiv 1701.06538, §2.1; `balance`: Switch Transformers, arXiv 2101.03961, equation 4.
    """
    if scores_TE.ndim != 2 or not scores_TE.is_floating_point():
        raise ValueError(f"scores_TE is {scores_TE.dtype} of shape {tuple(scores_TE.shape)}; pass a float (T, E)")
    if not 1 <= k <= scores_TE.shape[1]:
        raise ValueError(f"k={k} does not fit the {scores_TE.shape[1]} experts of scores_TE; choose 1 to that")
    if weight not in get_args(Weight):
        raise ValueError(f"weight={weight!r} is unknown; choose one of {', '.join(get_args(Weight))}")
    for name, beside in (("by_TE", by_TE), ("probabilities_TE", probabilities_TE)):
        if beside is not None and beside.shape != scores_TE.shape:
            raise ValueError(f"{name} has shape {tuple(beside.shape)}; pass that of scores_TE {tuple(scores_TE.shape)}")
    if token_mask is not None and token_mask.shape != scores_TE.shape[:1]:
        raise ValueError(f"token_mask has shape {tuple(token_mask.shape)}; pass ({scores_TE.shape[0]},)")
    return TopKRouting(
        *implementation("topk_routing", scores_TE.device.type)(
            scores_TE,
            k,
            by_TE=by_TE,
            probabilities_TE=probabilities_TE,
            weight=weight,
            eps=eps,
            scale=scale,
            token_mask=token_mask,
        )
    )


def is_one_pass(scores_TE: Tensor) -> bool:
    """Whether `topk_routing` has a kernel for these scores; else it does what the parts of a gate do, one by one."""
    if torch.compiler.is_compiling() or scores_TE.device.type != "cpu" or backend_for("cpu") != "cpu":
        return False
    from gatelab.kernels.cpu.topk_routing import runs_in_numba

    return runs_in_numba(scores_TE)
