"""The gate in one pass over the logits, and its gradient in another."""

from typing import Any

import torch
import triton
from torch import Tensor

from gatelab.kernels.reference.topk_gate import topk_gate as reference
from gatelab.kernels.triton import _topk_gate_kernels as kernels
from gatelab.kernels.triton._launch import launch, no_second_derivative, num_programs, rows_per_block


def topk_gate(
    logits_TE: Tensor,
    top_k: int,
    *,
    activation: str = "softmax",
    select_on: str = "scores",
    bias: Tensor | None = None,
    num_groups: int = 1,
    keep_groups: int = 1,
    groups_by: str = "max",
    renormalize: bool = False,
    scale: float = 1.0,
    token_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `gatelab.kernels.topk_gate`. float64, which no gate on a GPU uses, runs in the reference.

    Raises:
        NotImplementedError: in a second backward pass, which only the reference has.
    """
    if logits_TE.dtype == torch.float64:
        return reference(
            logits_TE,
            top_k,
            activation=activation,
            select_on=select_on,
            bias=bias,
            num_groups=num_groups,
            keep_groups=keep_groups,
            groups_by=groups_by,
            renormalize=renormalize,
            scale=scale,
            token_mask=token_mask,
        )
    on_logits, two_best = select_on == "logits", groups_by == "two-best"
    groups = (num_groups, keep_groups, two_best)
    return _forward(logits_TE, bias, token_mask, top_k, activation, on_logits, *groups, renormalize, float(scale))


@torch.library.custom_op("gatelab::topk_gate_triton", mutates_args=())
def _forward(
    logits_TE: Tensor,
    bias: Tensor | None,
    token_mask: Tensor | None,
    top_k: int,
    activation: str,
    on_logits: bool,
    num_groups: int,
    keep_groups: int,
    two_best: bool,
    renormalize: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    T, E = logits_TE.shape
    logits_TE = logits_TE.contiguous()
    G, S = triton.next_power_of_2(num_groups), triton.next_power_of_2(E // num_groups)
    block_T = rows_per_block(G * S)
    programs = min(triton.cdiv(T, block_T), num_programs(logits_TE.device))
    weights_TK = logits_TE.new_empty(T, top_k, dtype=torch.float32)
    ids_TK = logits_TE.new_empty(T, top_k, dtype=torch.int64)
    logsumexp_T = logits_TE.new_empty(T, dtype=torch.float32)
    counts_PE = logits_TE.new_empty(programs, E, dtype=torch.int32)
    launch(
        kernels.forward,
        programs,
        logits_TE,
        None if bias is None else bias.contiguous(),
        None if token_mask is None else token_mask.contiguous(),
        weights_TK,
        ids_TK,
        logsumexp_T,
        counts_PE,
        T,
        scale,
        E=E,
        K=top_k,
        ACTIVATION=activation,
        ON_LOGITS=on_logits,
        NUM_GROUPS=num_groups,
        KEEP_GROUPS=keep_groups,
        TWO_BEST=two_best,
        RENORMALIZE=renormalize,
        BLOCK_T=block_T,
        G=G,
        S=S,
        elements=block_T * G * S,
    )
    return weights_TK, ids_TK, logsumexp_T, counts_PE.sum(0)


@_forward.register_fake
def _(logits_TE, bias, token_mask, top_k, *options) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    T, E = logits_TE.shape
    return (
        logits_TE.new_empty(T, top_k, dtype=torch.float32),
        logits_TE.new_empty(T, top_k, dtype=torch.int64),
        logits_TE.new_empty(T, dtype=torch.float32),
        logits_TE.new_empty(E, dtype=torch.int64),
    )


@torch.library.custom_op("gatelab::topk_gate_triton_backward", mutates_args=())
def _backward(
    logits_TE: Tensor,
    ids_TK: Tensor,
    grad_weights_TK: Tensor,
    grad_logsumexp_T: Tensor,
    activation: str,
    renormalize: bool,
    scale: float,
) -> Tensor:
    T, E = logits_TE.shape
    block_T, block_E = rows_per_block(E), triton.next_power_of_2(E)
    grad_TE = torch.empty_like(logits_TE, memory_format=torch.contiguous_format)
    launch(
        kernels.backward,
        triton.cdiv(T, block_T),
        logits_TE.contiguous(),
        ids_TK,
        grad_weights_TK.contiguous(),
        grad_logsumexp_T.contiguous(),
        grad_TE,
        T,
        scale,
        E=E,
        K=ids_TK.shape[1],
        ACTIVATION=activation,
        RENORMALIZE=renormalize,
        BLOCK_T=block_T,
        BLOCK_E=block_E,
        elements=block_T * block_E,
    )
    return grad_TE


@_backward.register_fake
def _(logits_TE, *rest) -> Tensor:
    return torch.empty_like(logits_TE, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[0], output[1])
    ctx.activation, ctx.renormalize, ctx.scale = inputs[4], inputs[9], inputs[10]


def _gradients(ctx: Any, grad_weights_TK: Tensor, _ids, grad_logsumexp_T: Tensor, _counts) -> tuple:
    logits_TE, ids_TK = ctx.saved_tensors
    grad_TE = _backward(
        logits_TE, ids_TK, grad_weights_TK, grad_logsumexp_T, ctx.activation, ctx.renormalize, ctx.scale
    )
    return grad_TE, *[None] * 10


_forward.register_autograd(_gradients, setup_context=_save)
_backward.register_autograd(no_second_derivative("topk_gate"))
