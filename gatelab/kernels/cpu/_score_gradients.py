"""The gradients of `_score_rows`, in numba (extra `fast`): sums of outer products, whose factors are read as they are.

Eight numbers of the gradient of the logits meet 32 neighbours of a row at a time: 16 of the 32 registers hold sums.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from numba import int64, void
from numba.np.numpy_support import carray
from torch import Tensor

from gatelab.kernels.cpu._bfloat16_tiles import rounded_pair
from gatelab.kernels.cpu._emit import (
    FLOAT,
    FLOATS,
    INTS,
    LANES,
    LONG,
    SHORTS,
    call,
    constant,
    inline,
    load,
    splat,
    store,
)
from gatelab.kernels.cpu._memory import empty
from gatelab.kernels.cpu._regions import claim, longs_at, region
from gatelab.kernels.cpu._score_rows import WORTH_A_CORE

_AT_ONCE = 8
_WIDTH = 2 * LANES
_TOKENS = 64  # whose outer products are summed in registers before they are added to the rest


def of_hidden(grad_TE: Tensor, weight_ED: Tensor) -> Tensor:
    """g · W (T, D) in the dtype of W."""
    return _product(0, grad_TE, weight_ED, grad_TE.shape[0])


def of_weight(grad_TE: Tensor, hidden_TD: Tensor) -> Tensor:
    """gᵀ · x (E, D) in the dtype of x, summed in float32 over tokens in ascending order."""
    return _product(1, grad_TE, hidden_TD, grad_TE.shape[1])


def _product(which: int, grad_TE: Tensor, factor: Tensor, rows: int) -> Tensor:
    (T, E), D, is_bfloat16 = grad_TE.shape, factor.shape[1], factor.dtype == torch.bfloat16
    out = empty((rows, D), factor.dtype)
    sums = torch.empty(rows, D, dtype=torch.float32, device="cpu") if is_bfloat16 and which else out
    addresses = (grad_TE.data_ptr(), factor.data_ptr(), sums.data_ptr(), out.data_ptr())
    _kernels(is_bfloat16)[which](max(1, T * D * E // WORTH_A_CORE), *addresses, T, D, E)
    return out


def _halves(b: Any, address: Any, is_bfloat16: bool) -> list[Any]:
    """32 numbers in float32."""
    if not is_bfloat16:
        return [load(b, FLOATS, address, offset) for offset in (0, 64)]
    wide = [b.zext(load(b, SHORTS, address, offset), INTS) for offset in (0, 32)]
    return [b.bitcast(b.shl(half, constant(INTS, 16)), FLOATS) for half in wide]


def _sum_of_products(rows: int, is_bfloat16: bool, adds: bool) -> Any:
    """out[r] (32 numbers) = Σ_i grad[i·step + r·stride] · factor[i]; steps and strides in bytes. `adds`: in float32."""

    @inline
    def tile(_: Any, n: Any, grad: Any, step: Any, stride: Any, factor: Any, size: Any, out: Any, to: Any) -> Any:
        def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
            n, grad, step, stride, factor, size, out, to = arguments
            before, loop, after = b.block, b.append_basic_block("terms"), b.append_basic_block("done")
            b.branch(loop)
            b.position_at_end(loop)
            left, left_at, right_at = (b.phi(LONG) for _ in range(3))
            old = [b.phi(FLOATS) for _ in range(2 * rows)]
            columns, sums = _halves(b, right_at, is_bfloat16), []
            for r in range(rows):
                x = splat(b, load(b, FLOAT, b.add(left_at, b.mul(stride, LONG(r)))))
                sums += [call(b, "llvm.fma.v16f32", FLOATS, x, columns[i], old[2 * r + i]) for i in range(2)]
            fewer = b.sub(left, LONG(1))
            steps = [(left, n, fewer), (left_at, grad, b.add(left_at, step)), (right_at, factor, b.add(right_at, size))]
            steps += [(o, constant(FLOATS, 0.0), s) for o, s in zip(old, sums, strict=True)]
            for phi, start, following in steps:
                phi.add_incoming(start, before)
                phi.add_incoming(following, loop)
            b.cbranch(b.icmp_signed(">", fewer, LONG(0)), loop, after)
            b.position_at_end(after)
            for r in range(rows):
                _put(b, sums[2 * r : 2 * r + 2], b.add(out, b.mul(to, LONG(r))), is_bfloat16 and not adds, adds)

        return void(*[int64] * 8), emit

    return tile


def _put(b: Any, halves: list[Any], address: Any, is_bfloat16: bool, adds: bool) -> None:
    if is_bfloat16:
        store(b, rounded_pair(b, *halves), address)
        return
    for half, offset in zip(halves, (0, 64), strict=True):
        store(b, b.fadd(load(b, FLOATS, address, offset), half) if adds else half, address, offset)


@inline
def _round(_: Any, source: Any, target: Any) -> Any:
    """32 numbers from float32 to bfloat16."""

    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        source, target = arguments
        store(b, rounded_pair(b, *_halves(b, source, False)), target)

    return void(int64, int64), emit


@inline
def _clear(_: Any, target: Any) -> Any:
    def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
        for offset in (0, 64):
            store(b, constant(FLOATS, 0.0), arguments[0], offset)

    return void(int64), emit


@functools.cache
def _kernels(is_bfloat16: bool) -> tuple[Callable[..., None], Callable[..., None]]:
    """`of_hidden` and `of_weight`."""
    size = 2 if is_bfloat16 else 4
    eight, one = (_sum_of_products(rows, is_bfloat16, False) for rows in (_AT_ONCE, 1))
    add_eight, add_one = (_sum_of_products(rows, is_bfloat16, True) for rows in (_AT_ONCE, 1))

    def of_hidden(address):
        _, grad, weight, _, out, T, D, E = carray(longs_at(address), 8)
        while True:
            start = claim(address) * _TOKENS
            if start >= T:
                return
            stop = min(start + _TOKENS, T)
            for d in range(0, D, _WIDTH):
                t = start
                while t + _AT_ONCE <= stop:
                    eight(
                        E, grad + 4 * t * E, 4, 4 * E, weight + size * d, size * D, out + size * (t * D + d), size * D
                    )
                    t += _AT_ONCE
                while t < stop:
                    one(E, grad + 4 * t * E, 4, 4 * E, weight + size * d, size * D, out + size * (t * D + d), size * D)
                    t += 1

    def of_weight(address):
        _, grad, hidden, sums, out, T, D, E = carray(longs_at(address), 8)
        while True:
            first = claim(address) * 2 * _WIDTH
            if first >= D:
                return
            last = min(first + 2 * _WIDTH, D)
            for e in range(E):
                for d in range(first, last, _WIDTH):
                    _clear(sums + 4 * (e * D + d))
            for start in range(0, T, _TOKENS):
                n, g, x = min(_TOKENS, T - start), grad + 4 * start * E, hidden + size * start * D
                e = 0
                while e + _AT_ONCE <= E:
                    for d in range(first, last, _WIDTH):
                        add_eight(n, g + 4 * e, 4 * E, 4, x + size * d, size * D, sums + 4 * (e * D + d), 4 * D)
                    e += _AT_ONCE
                while e < E:
                    for d in range(first, last, _WIDTH):
                        add_one(n, g + 4 * e, 4 * E, 4, x + size * d, size * D, sums + 4 * (e * D + d), 4 * D)
                    e += 1
            if is_bfloat16:
                for e in range(E):
                    for d in range(first, last, _WIDTH):
                        _round(sums + 4 * (e * D + d), out + 2 * (e * D + d))

    for function in (of_hidden, of_weight):
        function.__name__ += "_of_bfloat16" if is_bfloat16 else "_of_floats"
    sources = ("_emit", "_bfloat16_tiles", "_score_gradients")
    return region(of_hidden, *sources), region(of_weight, *sources)
