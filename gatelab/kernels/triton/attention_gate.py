"""Attention over experts: the E×E softmax of a token is made a few rows at a time, and never written out."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from gatelab.kernels.triton._launch import computed_in, launch, no_second_derivative, rows_per_block


def attention_gate(q_TE: Tensor, k_TE: Tensor, v_TE: Tensor) -> Tensor:
    """See `gatelab.kernels.attention_gate`. Computed in at least float32; the backward pass makes the softmax again.

    Memory: 3·T·E numbers in and T·E out, and nothing is kept but the arguments.

    Raises:
        NotImplementedError: in a second backward pass, which only the reference has.
    """
    return _forward(q_TE, k_TE, v_TE)


def _blocks(tensor_TE: Tensor) -> dict[str, Any]:
    E = tensor_TE.shape[1]
    block_E = triton.next_power_of_2(E)
    block_I = min(block_E, rows_per_block(E))
    constants = {"E": E, "BLOCK_I": block_I, "BLOCK_E": block_E, "COMPUTE": computed_in(tensor_TE.dtype)}
    return {**constants, "elements": block_I * block_E}


@torch.library.custom_op("gatelab::attention_gate_triton", mutates_args=())
def _forward(q_TE: Tensor, k_TE: Tensor, v_TE: Tensor) -> Tensor:
    z_TE = torch.empty_like(q_TE, memory_format=torch.contiguous_format)
    inputs = [tensor.contiguous() for tensor in (q_TE, k_TE, v_TE)]
    launch(_forward_kernel, q_TE.shape[0], *inputs, z_TE, **_blocks(q_TE))
    return z_TE


@_forward.register_fake
def _(q_TE: Tensor, k_TE: Tensor, v_TE: Tensor) -> Tensor:
    return torch.empty_like(q_TE, memory_format=torch.contiguous_format)


@torch.library.custom_op("gatelab::attention_gate_triton_backward", mutates_args=())
def _backward(grad_TE: Tensor, q_TE: Tensor, k_TE: Tensor, v_TE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    inputs = [tensor.contiguous() for tensor in (q_TE, k_TE, v_TE, grad_TE)]
    dq_TE, dk_TE, dv_TE = (torch.empty_like(tensor) for tensor in inputs[:3])
    launch(_backward_kernel, q_TE.shape[0], *inputs, dq_TE, dk_TE, dv_TE, **_blocks(q_TE))
    return dq_TE, dk_TE, dv_TE


@_backward.register_fake
def _(grad_TE: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in inputs)


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


_forward.register_autograd(lambda ctx, grad_TE: _backward(grad_TE, *ctx.saved_tensors), setup_context=_save)
_backward.register_autograd(no_second_derivative("attention_gate"))
# What the reference multiplies; that the backward pass makes the softmax again is not counted.
register_flop_formula(torch.ops.gatelab.attention_gate_triton)(lambda q, *_, **__: 4 * q[0] * q[1] ** 2)
register_flop_formula(torch.ops.gatelab.attention_gate_triton_backward)(lambda q, *_, **__: 8 * q[0] * q[1] ** 2)


@triton.jit
def _softmax(q_I, k_E, exists_E):
    """(I, E) softmax_j(q_i k_j): the largest q_i k_j of a row is that of the largest or the least k."""
    largest = tl.max(tl.where(exists_E, k_E, float("-inf")), axis=0)
    least = tl.min(tl.where(exists_E, k_E, float("inf")), axis=0)
    top_I = tl.maximum(q_I * largest, q_I * least)
    exp_IE = tl.exp(tl.where(exists_E[None, :], q_I[:, None] * k_E[None, :] - top_I[:, None], float("-inf")))
    return exp_IE / tl.sum(exp_IE, axis=1)[:, None]


@triton.jit
def _forward_kernel(
    q_ptr, k_ptr, v_ptr, z_ptr, E: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_E: tl.constexpr, COMPUTE: tl.constexpr
):
    """One token."""
    row = tl.program_id(0).to(tl.int64) * E
    j = tl.arange(0, BLOCK_E)
    k_E = tl.load(k_ptr + row + j, mask=j < E, other=0.0).to(COMPUTE)
    v_E = tl.load(v_ptr + row + j, mask=j < E, other=0.0).to(COMPUTE)
    for start in range(0, E, BLOCK_I):
        i = start + tl.arange(0, BLOCK_I)
        q_I = tl.load(q_ptr + row + i, mask=i < E, other=0.0).to(COMPUTE)
        z_I = tl.sum(_softmax(q_I, k_E, j < E) * v_E[None, :], axis=1)
        tl.store(z_ptr + row + i, z_I.to(z_ptr.dtype.element_ty), mask=i < E)


@triton.jit
def _backward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    grad_ptr,
    dq_ptr,
    dk_ptr,
    dv_ptr,
    E: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_E: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """One token: with A the softmax and g the gradient of z = A v, that of q_i k_j is A_ij g_i (v_j − z_i)."""
    row = tl.program_id(0).to(tl.int64) * E
    j = tl.arange(0, BLOCK_E)
    k_E = tl.load(k_ptr + row + j, mask=j < E, other=0.0).to(COMPUTE)
    v_E = tl.load(v_ptr + row + j, mask=j < E, other=0.0).to(COMPUTE)
    dk_E, dv_E = tl.zeros([BLOCK_E], COMPUTE), tl.zeros([BLOCK_E], COMPUTE)
    for start in range(0, E, BLOCK_I):
        i = start + tl.arange(0, BLOCK_I)
        q_I = tl.load(q_ptr + row + i, mask=i < E, other=0.0).to(COMPUTE)
        g_I = tl.load(grad_ptr + row + i, mask=i < E, other=0.0).to(COMPUTE)
        A_IE = _softmax(q_I, k_E, j < E)
        z_I = tl.sum(A_IE * v_E[None, :], axis=1)
        dS_IE = A_IE * g_I[:, None] * (v_E[None, :] - z_I[:, None])
        tl.store(dq_ptr + row + i, tl.sum(dS_IE * k_E[None, :], axis=1).to(dq_ptr.dtype.element_ty), mask=i < E)
        dk_E += tl.sum(dS_IE * q_I[:, None], axis=0)
        dv_E += tl.sum(A_IE * g_I[:, None], axis=0)
    tl.store(dk_ptr + row + j, dk_E.to(dk_ptr.dtype.element_ty), mask=j < E)
    tl.store(dv_ptr + row + j, dv_E.to(dv_ptr.dtype.element_ty), mask=j < E)
