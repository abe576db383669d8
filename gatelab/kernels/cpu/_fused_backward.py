"""The experts whose backward pass one numba kernel computes from the gradient of y on, and with what memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gatelab.kernels.cpu._cores import balance
from gatelab.kernels.cpu._fused import is_plain, kernels, scratches_of
from gatelab.kernels.cpu._memory import entries

if TYPE_CHECKING:
    from gatelab.kernels.cpu._expert_forward import Arguments, Piece


def fused_backward(
    grad_TD: Tensor,
    hidden: Tensor,
    arguments: Arguments,
    pieces: list[list[Piece]],
    grad_rows_ND: Tensor | None,
    grad_weights: Tensor | None,
    grad_up_EJD: Tensor | None,
    grad_down_EDI: Tensor | None,
) -> Callable[[int], None] | None:
    """What writes the gradients of an expert, whose blocks are its `pieces`, and of its rows; None: see `fused`.

    Also None where one core would do most of the work, so that the last bits may differ with the number of threads.
    """
    blocks = [piece for own in pieces for piece in own]
    sizes = [own[-1].stop - own[0].start if own else 0 for own in pieces]
    if not balance(sizes, arguments.multiply_adds):  # an expert stays on one core
        return None
    if arguments.weights.dtype != torch.float32 or not is_plain(arguments, blocks):
        return None
    if (module := kernels("gradients", arguments)) is None:
        return None
    _, D, I = arguments.down_proj.shape
    if D > module.MOST_COLUMNS:
        return None
    scratches = scratches_of(module, arguments, blocks)
    x_TD, grad_TD = arguments.x_TD.contiguous(), grad_TD.contiguous()
    weights = arguments.weights.detach().contiguous()
    grads = torch.empty_like(weights) if grad_weights is None else grad_weights
    rows = (arguments.token_index.contiguous(), hidden.contiguous(), grad_rows_ND, weights, grads)
    by_row = [entries(t) for t in rows]
    by_expert = [entries(t) for t in (arguments.up_proj, arguments.down_proj, grad_up_EJD, grad_down_EDI)]

    def work(e: int) -> None:
        own = pieces[e]
        if not own and grad_up_EJD is not None and grad_down_EDI is not None:
            grad_up_EJD[e].zero_()
            grad_down_EDI[e].zero_()
        needs_sums = len(own) > 1 and x_TD.dtype != torch.float32
        sums = torch.empty(3 * D * I if needs_sums else 0, device="cpu")  # so that a sum of many terms is rounded once
        up_JD, down_DI, grad_up_JD, grad_down_DI = (at(e) for at in by_expert)
        for i, (_, start, stop) in enumerate(own):
            tokens_n, hidden_nJ, grad_rows_nD, weights_n, grads_n = (at(start) for at in by_row)
            inputs = (x_TD.data_ptr(), grad_TD.data_ptr(), tokens_n, stop - start, up_JD, down_DI)
            with scratches.lend() as scratch:
                module.swiglu_expert_gradients(
                    *inputs,
                    weights_n,
                    D,
                    I,
                    hidden_nJ,
                    grad_rows_nD,
                    grads_n,
                    grad_up_JD,
                    grad_down_DI,
                    sums.data_ptr(),
                    i == 0,
                    i == len(own) - 1,
                    scratch.take(1, 1).data_ptr(),
                )

    return work
