"""The backward pass of SwiGLU and of the combine weights, in one pass over the rows, in numba (extra `fast`)."""

from typing import Any

import numpy as np
from numba import float32, int64, void

from gatelab.kernels.cpu import _emit as emit


def _gradients(b: Any, load: Any, store: Any, arguments: Any) -> Any:
    grad, gate, up, weight, *targets = arguments
    d, g, u = (load(b, address) for address in (grad, gate, up))
    *outputs, products = emit.swiglu_gradients(b, d, g, u, emit.splat(b, weight))
    for output, target in zip(outputs, targets, strict=True):
        store(b, output, target)
    return emit.total(b, products)


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
