"""From scores to a routing in numba (extra `fast`), and back."""

from typing import Any

import torch
from torch import Tensor

from gatelab.kernels.cpu._memory import empty
from gatelab.kernels.cpu._plain import is_plain, rows_in_numba
from gatelab.kernels.reference.topk import topk
from gatelab.kernels.reference.topk_routing import topk_routing as reference
from gatelab.kernels.reference.topk_routing import weigh

_MOST_CHOICES = 15  # each is a pass over the row; beyond, `torch.topk` is as fast
_WEIGHTS = ("score", "renormalize", "softmax", "sigmoid")
_How = tuple[str, float, float]  # weight, eps, scale


def topk_routing(
    scores_TE: Tensor,
    k: int,
    *,
    by_TE: Tensor | None = None,
    probabilities_TE: Tensor | None = None,
    weight: str = "score",
    eps: float = 0.0,
    scale: float = 1.0,
    token_mask: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """See `gatelab.kernels.topk_routing`. Tokens whose choice is among equals are left to `torch.topk`."""
    by_TE = scores_TE if by_TE is None else by_TE
    p_TE = scores_TE if probabilities_TE is None else probabilities_TE
    if not runs_in_numba(scores_TE) or by_TE.dtype != torch.float32 or p_TE.dtype != torch.float32:
        options = {"weight": weight, "eps": eps, "scale": scale, "token_mask": token_mask}
        return reference(scores_TE, k, by_TE=by_TE, probabilities_TE=p_TE, **options)
    how = (weight, float(eps), float(scale))
    if torch.is_grad_enabled() and (scores_TE.requires_grad or p_TE.requires_grad):
        return _Route.apply(scores_TE, None if p_TE is scores_TE else p_TE, by_TE.detach(), token_mask, k, how)
    return _route(scores_TE, p_TE, by_TE, token_mask, k, how)


def runs_in_numba(scores_TE: Tensor) -> bool:
    """Whether these scores are plain float32, and numba is there."""
    return scores_TE.dtype == torch.float32 and is_plain(scores_TE) and rows_in_numba() is not None


def _route(
    scores_TE: Tensor, p_TE: Tensor, by_TE: Tensor, mask_T: Tensor | None, k: int, how: _How
) -> tuple[Tensor, ...]:
    (T, E), (weight, eps, scale) = scores_TE.shape, how
    inputs = [None if t is None else t.contiguous() for t in (by_TE, scores_TE, p_TE, mask_T)]
    longs, floats = {"dtype": torch.int64, "device": "cpu"}, {"dtype": torch.float32, "device": "cpu"}
    outputs = (
        torch.empty(T, k, **floats),
        torch.empty(T, k, **longs),
        torch.empty(T * k, **longs),
        torch.empty(T * k, **longs),
        torch.empty(T * k, **floats),
        torch.empty(E + 1, **longs),
        torch.empty(E, **longs),
        torch.empty((), **floats),
    )
    before = (*map(_address, inputs), T, E, k, _WEIGHTS.index(weight), eps, scale)
    after = [output.data_ptr() for output in outputs]
    rows, ids_TK = rows_in_numba(), outputs[1]
    assert rows is not None
    if k > _MOST_CHOICES:
        ids_TK.copy_(topk(by_TE, k))
    elif doubtful := rows.route(*before, False, *after):
        rows_n = outputs[3][:doubtful]
        ids_TK[rows_n] = topk(by_TE[rows_n], k)
    else:
        return outputs
    rows.route(*before, True, *after)
    return outputs


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores_TE: Tensor, p_TE: Tensor | None, by_TE: Tensor, mask_T: Tensor | None, k: int, how: _How
    ) -> tuple[Tensor, ...]:
        outputs = _route(scores_TE, scores_TE if p_TE is None else p_TE, by_TE, mask_T, k, how)
        _, ids_TK, token_index, choice, _, expert_offsets, requested, _ = outputs
        ctx.save_for_backward(scores_TE, ids_TK, token_index, choice, requested)
        ctx.how, ctx.are_apart = how, p_TE is not None
        ctx.mark_non_differentiable(ids_TK, token_index, choice, expert_offsets, requested)
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved: tuple[Any, ...] = ctx.saved_tensors
        grad_TK, _, _, _, grad_N, _, _, grad_balance = grads
        s_wanted, p_wanted = ctx.needs_input_grad[:2]
        grad_p_TE = None
        if ctx.are_apart:
            if p_wanted and grad_balance is not None:
                scores_TE, ids_TK, _, _, requested = saved
                grad_p_TE = _of_probabilities(scores_TE, ids_TK, requested, grad_balance)
            grad_balance = None
        if not s_wanted or grad_TK is grad_N is grad_balance is None:
            return None, grad_p_TE, None, None, None, None
        gradient: Any = _differentiable if torch.is_grad_enabled() else _in_numba
        return gradient(*saved, ctx.how, grad_TK, grad_N, grad_balance), grad_p_TE, None, None, None, None


def _in_numba(
    scores_TE: Tensor,
    ids_TK: Tensor,
    token_index: Tensor,
    choice: Tensor,
    requested: Tensor,
    how: _How,
    *grads: Tensor | None,
) -> Tensor:
    """The gradient of the scores."""
    (T, E), (weight, eps, scale) = scores_TE.shape, how
    kept = [None if t is None else t.contiguous() for t in (scores_TE, ids_TK, token_index, choice, requested, *grads)]
    addresses = list(map(_address, kept))
    grad_TE, rows = empty((T, E), torch.float32), rows_in_numba()
    assert rows is not None
    how_much = (T, E, ids_TK.shape[1], _WEIGHTS.index(weight), eps, scale)
    rows.gradients(*addresses[:5], *how_much, *addresses[5:], grad_TE.data_ptr())
    return grad_TE


def _differentiable(
    scores_TE: Tensor,
    ids_TK: Tensor,
    token_index: Tensor,
    choice: Tensor,
    requested: Tensor,
    how: _How,
    grad_TK: Tensor | None,
    grad_N: Tensor | None,
    grad_balance: Tensor | None,
) -> Tensor:
    """The same in torch's operations, for a second derivative."""
    g_TK = scores_TE.new_zeros(ids_TK.shape) if grad_TK is None else grad_TK
    if grad_N is not None:
        g_TK = g_TK.index_put((token_index, choice), grad_N, accumulate=True)
    weights_TK = weigh(scores_TE, ids_TK.clamp(min=0), *how)
    (grad_TE,) = torch.autograd.grad(weights_TK, scores_TE, torch.where(ids_TK >= 0, g_TK, 0), create_graph=True)
    if grad_balance is None:
        return grad_TE
    return grad_TE + _of_probabilities(scores_TE, ids_TK, requested, grad_balance)


def _of_probabilities(scores_TE: Tensor, ids_TK: Tensor, requested: Tensor, grad_balance: Tensor) -> Tensor:
    """What the balance gives each probability: E · f_i / T, of a real token."""
    kept = requested.sum().clamp(min=1).to(scores_TE.dtype)
    share_E = grad_balance * requested * scores_TE.shape[1] * ids_TK.shape[1] / kept.square()
    return torch.where(ids_TK[:, :1] >= 0, share_E, 0)
