"""The backward pass of SwiGLU and of the combine weights, in one pass over the rows, in numba (extra `fast`)."""

from typing import Any

import numpy as np
from numba import float32, int64, void

from gatelab.kernels.cpu import _emit as emit


def _gradients(b: Any, load: Any, store: Any, arguments: Any) -> Any:
    grad, gate, up, weight, grad_gate, grad_up, weighted = arguments
    d, g, u, w = load(b, grad), load(b, gate), load(b, up), emit.splat(b, weight)
    sigmoid = emit.sigmoid(b, g)
    silu, d_w = b.fmul(g, sigmoid), b.fmul(d, w)
    a = b.fmul(silu, u)
    # silu'(g) = sigmoid(g) + silu(g)·(1 − sigmoid(g))
    slope = b.fadd(sigmoid, b.fmul(silu, b.fsub(emit.constant(emit.FLOATS, 1.0), sigmoid)))
    store(b, b.fmul(b.fmul(d_w, u), slope), grad_gate)
    store(b, b.fmul(d_w, silu), grad_up)
    store(b, b.fmul(a, w), weighted)
    lanes = b.fmul(d, a)
    return emit.call(b, "llvm.vector.reduce.fadd.v16f32", emit.FLOAT, emit.FLOAT(0.0), lanes, flags=("reassoc",))


@emit.inline
def _of_float32(_: Any, grad: Any, gate: Any, up: Any, weight: Any, grad_gate: Any, grad_up: Any, a: Any) -> Any:
    def generate(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        return _gradients(b, lambda b, address: emit.load(b, emit.FLOATS, address), emit.store, arguments)

    return float32(int64, int64, int64, float32, int64, int64, int64), generate


@emit.inline
def _of_bfloat16(_: Any, grad: Any, gate: Any, up: Any, weight: Any, grad_gate: Any, grad_up: Any, a: Any) -> Any:
    def generate(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        return _gradients(b, emit.load_bfloat16, emit.store_bfloat16, arguments)

    return float32(int64, int64, int64, float32, int64, int64, int64), generate


def _swiglu_gradients(is_bfloat16, grad, hidden, weights_n, I, grad_weights_n, grad_hidden, weighted):
    size = 2 if is_bfloat16 else 4
    row, vector = size * I, size * emit.LANES
    for r in range(len(weights_n)):
        total = np.float32(0)
        for i in range(r * row, (r + 1) * row, vector):
            gate = i + r * row  # rows of gate and up half are twice as long
            arguments = grad + i, hidden + gate, hidden + gate + row, weights_n[r]
            outputs = grad_hidden + gate, grad_hidden + gate + row, weighted + i
            total += _of_bfloat16(*arguments, *outputs) if is_bfloat16 else _of_float32(*arguments, *outputs)
        grad_weights_n[r] = total


_SIGNATURE = void(int64, int64, int64, float32[::1], int64, float32[::1], int64, int64)
swiglu_gradients = emit.compiled(_SIGNATURE, _swiglu_gradients)
"""Takes the addresses of grad (n, I), the gradient of a = silu(gate)·up before its weight, and of hidden (n, 2·I).

Writes grad · a to grad_weights (n,), the gradient of hidden to `grad_hidden`, and a · weights to `weighted` (n, I). I
is a multiple of 16.
"""
