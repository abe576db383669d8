"""The experts' backward pass, expert by expert, in the blocks of the forward pass."""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from gatelab.kernels.cpu._block_activation import BlockActivation
from gatelab.kernels.cpu._cores import run
from gatelab.kernels.cpu._expert_forward import Arguments, cut, row, scratches_for, sum_by_token
from gatelab.kernels.cpu._fused import fused_gradients
from gatelab.kernels.cpu._fused_backward import fused_backward
from gatelab.kernels.cpu._gemm import gather, linear, zero_padding
from gatelab.kernels.cpu._memory import Scratch, empty


class Gradients(NamedTuple):
    """Of the arguments of those names; None where there is none or none is wanted."""

    x_TD: Tensor | None
    weights: Tensor | None
    up_proj: Tensor | None
    down_proj: Tensor | None
    up_bias: Tensor | None
    down_bias: Tensor | None


def backward(
    grad_TD: Tensor, hidden: Tensor, arguments: Arguments, *, x_wanted: bool, weights_wanted: bool, experts_wanted: bool
) -> Gradients:
    """The gradients that are wanted, from that of y (T, D) and the `hidden` (M, J) of the forward pass."""
    x_TD, on_input = arguments.x_TD, arguments.weights_on_input
    weights = arguments.weights.to(x_TD.dtype)
    activation = BlockActivation(arguments.activation)
    offsets = arguments.expert_offsets.tolist()
    grad_rows_ND = empty((offsets[-1], x_TD.shape[1]), x_TD.dtype) if x_wanted else None
    grad_weights = torch.zeros_like(arguments.weights) if weights_wanted else None
    parameters = (arguments.up_proj, arguments.down_proj, arguments.up_bias, arguments.down_bias)
    grads = [empty(p.shape, p.dtype) if experts_wanted and p is not None else None for p in parameters]
    pieces = [cut(e, *borders, arguments.block_rows) for e, borders in enumerate(pairwise(offsets))]
    scratches = scratches_for(max((stop - start for own in pieces for _, start, stop in own), default=0), arguments)
    sum_dtype = torch.promote_types(x_TD.dtype, torch.float32)
    I, fused = arguments.down_proj.shape[2], fused_gradients(arguments, grad_weights)

    def work(e: int) -> None:
        own = [row(grad, e) for grad in grads]
        sums = own
        if len(pieces[e]) > 1 and sum_dtype != x_TD.dtype:  # so that a sum of many terms is rounded once
            sums = [None if grad is None else torch.empty(grad.shape, dtype=sum_dtype) for grad in own]
        for piece in pieces[e]:
            with scratches.lend() as scratch:
                block_gradients(*piece, scratch, sums, is_first=piece is pieces[e][0])
        for grad, total in zip(own, sums, strict=True):
            if grad is None or total is None:
                continue
            if not pieces[e]:
                grad.zero_()
            elif total is not grad:
                grad.copy_(total)

    def block_gradients(
        e: int, start: int, stop: int, scratch: Scratch, sums: list[Tensor | None], is_first: bool
    ) -> None:
        """Writes what the rows give x and the weights, and adds what they give the parameters of expert e."""
        n, tokens_n, weight_n1 = stop - start, arguments.token_index[start:stop], weights[start:stop, None]
        x_PD, grad_PD, h_nJ = gather(x_TD, tokens_n, scratch), gather(grad_TD, tokens_n, scratch), hidden[start:stop]
        grad_a_nI = linear(grad_PD, arguments.down_proj[e].t(), out=scratch)[:n]
        if fused is None:
            a_PI, activated_nI = activation.forward(h_nJ, scratch)
            if not on_input:  # the gradient of a weight is grad · down(a), which is (downᵀ grad) · a
                if grad_weights is not None:
                    grad_weights[start:stop] = _row_products(grad_a_nI, a_PI[:n], arguments.weights.dtype)
                grad_a_nI.mul_(weight_n1)
                a_PI[:n].mul_(weight_n1)
            grad_h_PJ = activation.backward(grad_a_nI, h_nJ, activated_nI, scratch)
        else:
            a_PI, grad_h_PJ = (zero_padding(scratch.take(grad_PD.shape[0], c), n) for c in (I, h_nJ.shape[1]))
            fused(grad_a_nI, h_nJ, slice(start, stop), grad_h_PJ, a_PI)
        del grad_a_nI  # oneDNN's own memory, as below: what a core holds at once adds to the peak
        if grad_weights is not None and not on_input and (bias_D := row(arguments.down_bias, e)) is not None:
            grad_weights[start:stop] += _row_products(grad_PD[:n], bias_D, arguments.weights.dtype)
        if grad_rows_ND is not None or (on_input and grad_weights is not None):
            grad_x_nD = linear(grad_h_PJ, arguments.up_proj[e].t(), out=scratch)[:n]
            if on_input:
                if grad_weights is not None:
                    grad_weights[start:stop] = _row_products(grad_x_nD, x_PD[:n], arguments.weights.dtype)
                grad_x_nD.mul_(weight_n1)
            if grad_rows_ND is not None:
                grad_rows_ND[start:stop] = grad_x_nD
            del grad_x_nD
        if not experts_wanted:
            return
        if on_input:
            x_PD[:n].mul_(weight_n1)
        up, down, up_bias, down_bias = sums
        _add_product(up, grad_h_PJ, x_PD, is_first)
        _add_product(down, grad_PD, a_PI, is_first)
        if up_bias is not None:
            _add(up_bias, grad_h_PJ.sum(0), is_first)
        if down_bias is not None:
            _add(down_bias, (grad_PD[:n] if on_input else grad_PD[:n] * weight_n1).sum(0), is_first)

    work_of_one = fused_backward(grad_TD, hidden, arguments, pieces, grad_rows_ND, grad_weights, *grads[:2]) or work
    sizes = [high - low for low, high in pairwise(offsets)]
    run(work_of_one, range(len(sizes)), sizes, arguments.multiply_adds)
    grad_x_TD = None
    if grad_rows_ND is not None:
        grad_x_TD = sum_by_token(grad_rows_ND, arguments.token_index, x_TD.shape[0])
    return Gradients(grad_x_TD, grad_weights, *grads)


def _row_products(a_nA: Tensor, b_nA: Tensor, dtype: torch.dtype) -> Tensor:
    """(n,) inner products of rows."""
    return (a_nA * b_nA).sum(1, dtype=dtype)


def _add_product(total_AB: Tensor | None, x_PA: Tensor, y_PB: Tensor, is_first: bool) -> None:
    if total_AB is not None:
        out = total_AB if is_first and total_AB.dtype == x_PA.dtype else None
        _add(total_AB, linear(x_PA.t(), y_PB.t(), out=out), is_first)


def _add(total: Tensor, term: Tensor, is_first: bool) -> None:
    if is_first and term is not total:
        total.copy_(term)
    elif not is_first:
        total.add_(term)
