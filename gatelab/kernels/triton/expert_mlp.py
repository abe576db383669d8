"""The experts' multilayer perceptrons in Triton: grouped products that gather as they load, one operator each way.

For the backward pass it keeps its arguments, what enters the activation (M, J) in their dtype, and M + T + 1 int64 of
order: with M = T·K and b bytes per element 2·b·T·K·I + 8·(T·K + T + 1) bytes beyond x for gated experts. A dense SwiGLU
of width K·I keeps at least 3·b·T·K·I: its two halves and their product.

Float32 is multiplied exactly, or in TF32 where `torch.backends.cuda.matmul` allows it. Deterministic: no atomics, every
sum in an order that depends on the shapes and the tuned tile sizes alone. A callable activation and float64 run in the
slower reference.
"""

from typing import Any

import torch
from torch import Tensor

from gatelab.kernels._expert_operator import expert_operator
from gatelab.kernels.triton._expert_combine import by_token, combine, row_products
from gatelab.kernels.triton._expert_hidden import hidden_gradient
from gatelab.kernels.triton._expert_tiles import tiles_of
from gatelab.kernels.triton._expert_up import up
from gatelab.kernels.triton._expert_weights import outer_products, sum_rows
from gatelab.kernels.triton._grouped_gemm import multiply_rows
from gatelab.kernels.triton._launch import device_of


def _forward(
    x_TD: Tensor,
    token_index: Tensor,
    expert_offsets: Tensor,
    weights: Tensor,
    up_proj: Tensor,
    down_proj: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: str,
    weights_on_input: bool,
    keep_hidden: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    token_index, expert_offsets, weights, up_bias, down_bias = _contiguous(
        token_index, expert_offsets, weights, up_bias, down_bias
    )
    before, after = (weights, None) if weights_on_input else (None, weights)
    with device_of(x_TD):
        tiles = tiles_of(expert_offsets, token_index.shape[0])
        order, token_offsets = by_token(token_index, expert_offsets, x_TD.shape[0])
        I = down_proj.shape[2]
        hidden, activated = up(x_TD, token_index, before, up_proj, up_bias, tiles, activation, I, keep_hidden)
        rows_MD = multiply_rows(activated, down_proj, down_bias, tiles)
        return combine(rows_MD, after, order, token_offsets), hidden, order, token_offsets


def _backward(
    grad_TD: Tensor,
    hidden: Tensor,
    order: Tensor,
    token_offsets: Tensor,
    x_TD: Tensor,
    token_index: Tensor,
    expert_offsets: Tensor,
    weights: Tensor,
    up_proj: Tensor,
    down_proj: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: str,
    weights_on_input: bool,
    x_wanted: bool,
    weights_wanted: bool,
    experts_wanted: bool,
) -> tuple[Tensor | None, ...]:
    token_index, expert_offsets, weights, up_bias, down_bias = _contiguous(
        token_index, expert_offsets, weights, up_bias, down_bias
    )
    before, after = (weights, None) if weights_on_input else (None, weights)
    gradients: list[Tensor | None] = [None] * 6
    with device_of(x_TD):
        tiles = tiles_of(expert_offsets, token_index.shape[0])
        grad_hidden, activated, products = hidden_gradient(
            grad_TD, token_index, after, down_proj, hidden, tiles, activation
        )
        if x_wanted or (weights_wanted and weights_on_input):
            rows_MD = multiply_rows(grad_hidden, up_proj.transpose(1, 2), None, tiles)
            if x_wanted:
                gradients[0] = combine(rows_MD, before, order, token_offsets)
            if weights_on_input:
                products = row_products(rows_MD, None, x_TD, token_index, expert_offsets)
        if weights_wanted and products is not None:
            if down_bias is not None and not weights_on_input:
                expert_index = _expert_of_rows(expert_offsets, products)
                products = products + row_products(grad_TD, token_index, down_bias, expert_index, expert_offsets)
            live = torch.arange(products.shape[0], device=products.device) < expert_offsets[-1]
            gradients[1] = torch.where(live, products, 0).to(weights.dtype)
        if experts_wanted:
            gradients[2] = outer_products(grad_hidden, None, x_TD, token_index, before, expert_offsets)
            gradients[3] = outer_products(grad_TD, token_index, activated, None, None, expert_offsets)
            if up_bias is not None:
                gradients[4] = sum_rows(grad_hidden, None, None, expert_offsets)
            if down_bias is not None:
                gradients[5] = sum_rows(grad_TD, token_index, after, expert_offsets)
    return tuple(gradients)


def _contiguous(*vectors: Tensor | None) -> list[Any]:
    """Small beside the rest: only matrices are read in any strides."""
    return [None if vector is None else vector.contiguous() for vector in vectors]


def _expert_of_rows(expert_offsets: Tensor, rows: Tensor) -> Tensor:
    """(M,): the expert of each row; in the tail any."""
    index = torch.arange(rows.shape[0], device=rows.device)
    return torch.searchsorted(expert_offsets[1:], index, right=True).clamp_(max=expert_offsets.shape[0] - 2)


expert_mlp = expert_operator(
    "triton",
    _forward,
    _backward,
    kept={
        "order": lambda x_TD, token_index: torch.empty_like(token_index),
        "token_offsets": lambda x_TD, token_index: token_index.new_empty(x_TD.shape[0] + 1),
    },
    slow_dtypes=(torch.float64,),
)
