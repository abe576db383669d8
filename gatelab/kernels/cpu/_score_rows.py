"""Rows of hidden states times rows of a gate's weight, in numba (extra `fast`): a gate's weight is a few hundred KB.

Both are read where they lie and as they are; a library first reorders one of them, and casts bfloat16 to float32. A
result does not depend on what else is computed beside it.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import int64, void
from numba.np.numpy_support import carray
from torch import Tensor

from gatelab.kernels.cpu._emit import FLOAT, FLOATS, LANES, LONG, call, constant, inline, load, store
from gatelab.kernels.cpu._regions import claim, longs_at, region

_COLUMNS = 8  # experts at once: with two tokens, 16 of the 32 registers hold sums
_PIECE = 1 << 15  # bytes of hidden states, which stay in the first cache while the weight goes by
WORTH_A_CORE = 1 << 21  # multiply-adds: below, waking another core takes longer
_PAIRS = ir.VectorType(ir.IntType(16), 2 * LANES)
_REASSOCIATED = ("reassoc", "nsz", "contract")


def fits(hidden_TD: Tensor, weight_ED: Tensor) -> bool:
    """Whether `scores` is made for these matrices, and for this processor."""
    return (
        hidden_TD.dtype == weight_ED.dtype
        and hidden_TD.shape[1] % (2 * LANES) == 0
        and hidden_TD.is_contiguous()
        and weight_ED.is_contiguous()
        and _has(hidden_TD.dtype)
    )


@functools.cache
def _has(dtype: torch.dtype) -> bool:
    feature = {torch.float32: "avx512f", torch.bfloat16: "avx512bf16"}.get(dtype)
    try:
        return feature is not None and bool(get_host_cpu_features().get(feature))
    except RuntimeError:  # no idea of this processor
        return False


def scores(hidden_TD: Tensor, weight_ED: Tensor) -> Tensor:
    """x · Wᵀ (T, E) in float32, of matrices that fit."""
    (T, D), E = hidden_TD.shape, weight_ED.shape[0]
    logits_TE = torch.empty(T, E, dtype=torch.float32, device="cpu")
    addresses = (hidden_TD.data_ptr(), weight_ED.data_ptr(), logits_TE.data_ptr())
    _scores(hidden_TD.dtype == torch.bfloat16)(max(1, T * D * E // WORTH_A_CORE), *addresses, T, D, E)
    return logits_TE


def _tile(rows: int, columns: int, is_bfloat16: bool) -> Any:
    """out[r, c] = x[r] · w[c] for so many rows of D numbers; `stride` numbers lie between two rows of out."""
    kind, width, step = (_PAIRS, 2, 2 * LANES) if is_bfloat16 else (FLOATS, 4, LANES)

    def multiply_add(b: Any, total: Any, one: Any, other: Any) -> Any:
        if is_bfloat16:
            ints = ir.VectorType(ir.IntType(32), LANES)
            pairs = (b.bitcast(one, ints), b.bitcast(other, ints))
            return call(b, "llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, total, *pairs)
        return call(b, "llvm.fma.v16f32", FLOATS, one, other, total)

    @inline
    def tile(_: Any, x: Any, w: Any, D: Any, out: Any, stride: Any) -> Any:
        def emit(_: Any, b: Any, __: Any, arguments: Any) -> Any:
            x, w, D, out, stride = arguments
            size = b.mul(D, LONG(width))
            before, loop, after = b.block, b.append_basic_block("terms"), b.append_basic_block("done")
            b.branch(loop)
            b.position_at_end(loop)
            place, old = b.phi(LONG), [b.phi(FLOATS) for _ in range(rows * columns)]
            xs = [load(b, kind, b.add(x, b.add(place, b.mul(size, LONG(r))))) for r in range(rows)]
            ws = [load(b, kind, b.add(w, b.add(place, b.mul(size, LONG(c))))) for c in range(columns)]
            sums = [multiply_add(b, old[r * columns + c], xs[r], ws[c]) for r in range(rows) for c in range(columns)]
            next_place = b.add(place, LONG(step * width))
            steps = [(place, LONG(0), next_place)]
            steps += [(o, constant(FLOATS, 0.0), s) for o, s in zip(old, sums, strict=True)]
            for phi, start, following in steps:
                phi.add_incoming(start, before)
                phi.add_incoming(following, loop)
            b.cbranch(b.icmp_signed("<", next_place, size), loop, after)
            b.position_at_end(after)
            name = "llvm.vector.reduce.fadd.v16f32"
            for i, total in enumerate(sums):
                result = call(b, name, FLOAT, ir.Constant(FLOAT, -0.0), total, flags=_REASSOCIATED)
                place = b.add(b.mul(stride, LONG(4 * (i // columns))), LONG(4 * (i % columns)))
                store(b, result, b.add(out, place))

        return void(int64, int64, int64, int64, int64), emit

    return tile


@functools.cache
def _scores(is_bfloat16: bool) -> Callable[..., None]:
    width = 2 if is_bfloat16 else 4
    two_by_eight, two_by_one = _tile(2, _COLUMNS, is_bfloat16), _tile(2, 1, is_bfloat16)
    one_by_eight, one_by_one = _tile(1, _COLUMNS, is_bfloat16), _tile(1, 1, is_bfloat16)

    def scores(address):
        _, x, w, out, T, D, E = carray(longs_at(address), 7)
        rows = max(2, _PIECE // (width * D))
        while True:
            start = claim(address) * rows
            if start >= T:
                return
            stop = min(start + rows, T)
            for first in range(0, E, _COLUMNS):
                for t in range(start, stop, 2):
                    hidden, weight, to = x + width * t * D, w + width * first * D, out + 4 * (t * E + first)
                    are_two = t + 1 < stop
                    if first + _COLUMNS <= E:
                        if are_two:
                            two_by_eight(hidden, weight, D, to, E)
                        else:
                            one_by_eight(hidden, weight, D, to, E)
                        continue
                    for e in range(E - first):
                        if are_two:
                            two_by_one(hidden, weight + width * e * D, D, to + 4 * e, E)
                        else:
                            one_by_one(hidden, weight + width * e * D, D, to + 4 * e, E)

    scores.__name__ = "scores_of_bfloat16" if is_bfloat16 else "scores_of_floats"
    return region(scores, "_emit", "_score_rows")
