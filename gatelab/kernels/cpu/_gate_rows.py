"""What a gate does token by token, in numba. Axes: T tokens, E experts, K choices, N = T·K.

Tensors that come as addresses are cheaper to hand over than arrays: with one token, that is what takes the time.
"""

import math
from typing import Any

import numpy as np
from numba import float32, int32, int64, types
from numba.extending import intrinsic
from numba.np.numpy_support import carray

from gatelab.kernels.cpu._assignment_rows import jit

SCORE, RENORMALIZE, SOFTMAX, SIGMOID = range(4)
_LEAST_SUM = np.float32(1e-20)
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1
_MINUS_ZERO, _INFINITY = -(1 << 31), 0x7F800000  # float32, seen as int32
_LANES = 8  # of an AVX-512 register


@jit
def topk(bits_TE, k):
    """The k largest scores of each token, and the tokens at which equal scores or NaN leave a doubt.

    Args:
        bits_TE: float32 scores, seen as int32.
        k: K.

    Returns:
        ids (T, K) int64, the largest score first, and the numbers of the doubtful rows.
    """
    T, E = bits_TE.shape
    ids_TK, doubtful, count = np.empty((T, k), np.int64), np.empty(T, np.int64), 0
    keys = np.empty(-(-E // _LANES) * _LANES, np.int64)
    for t in range(T):
        if best(bits_TE[t], ids_TK[t], keys):
            doubtful[count] = t
            count += 1
    return ids_TK, doubtful[:count]


@jit
def best(bits_E, ids_K, keys):
    """Write the ids of the largest scores of one token; whether equal scores or NaN leave a doubt.

    The key of a score is the int32 of the same order above its id: integer maxima are vectorised without fast-math.
    `keys` has room for E of them, and for as many more as a register needs.
    """
    E, k, greatest = bits_E.shape[0], ids_K.shape[0], 0
    for e in range(E, keys.shape[0]):
        keys[e] = _LEAST
    for e in range(E):
        bits = np.int64(bits_E[e])
        greatest = max(greatest, bits & 0x7FFFFFFF)
        bits = 0 if bits == _MINUS_ZERO else bits
        keys[e] = ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) << 32) | e
    doubt, last = greatest > _INFINITY, np.int64(_MOST)
    for j in range(min(k + 1, E)):
        largest = np.int64(_LEAST)
        for c in range(keys.shape[0]):
            largest = max(largest, keys[c] if keys[c] < last else np.int64(_LEAST))
        doubt |= largest >> 32 == last >> 32
        if j < k:
            ids_K[j] = largest & 0xFFFFFFFF
        last = largest
    return doubt


@jit
def group(ids_N, num_experts):
    """The stable order of ids by expert, the entries of none last, and where each expert starts: (N,) and (E + 1,).

    Ids of no expert, too large ones among them, are looked for: here they would be written outside the arrays.
    """
    order, place = np.empty(ids_N.shape[0], np.int64), np.zeros(num_experts + 2, np.int64)
    for e in ids_N:
        place[(e if 0 <= e < num_experts else num_experts) + 1] += 1
    for e in range(num_experts + 1):
        place[e + 1] += place[e]
    offsets = place[:-1].copy()
    for n in range(ids_N.shape[0]):
        e = ids_N[n] if 0 <= ids_N[n] < num_experts else num_experts
        order[place[e]] = n
        place[e] += 1
    return order, offsets


def _pointer(kind: Any) -> Any:
    """From an address to a pointer of C's."""

    @intrinsic
    def pointer(_: Any, address: Any) -> Any:
        def emit(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            return b.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(address), emit

    return pointer


_floats, _ints, _longs, _bytes = map(_pointer, (float32, int32, int64, types.uint8))


@jit
def route(
    by, scores, probabilities, mask, T, E, k, weight, eps, scale, is_chosen,
    topk_weights, topk_ids, token_index, choice, weights, expert_offsets, requested, balance,
):  # fmt: skip
    """Write what `gatelab.kernels.topk_routing` returns, from its arguments; `mask` may be 0.

    Where `is_chosen`, `topk_ids` is read: it holds the choices of all real tokens. Else it is written, and tokens at
    which equal scores or NaN leave a doubt are noted in `choice`, to be chosen for by others.

    Returns:
        How many tokens are in doubt; if there are any, the rest is not written.
    """
    by_TE, s_TE, p_TE = (
        carray(_ints(by), (T, E)),
        carray(_floats(scores), (T, E)),
        carray(_floats(probabilities), (T, E)),
    )
    ids_TK, w_TK = carray(_longs(topk_ids), (T, k)), carray(_floats(topk_weights), (T, k))
    choice_N, is_real = carray(_longs(choice), T * k), carray(_bytes(mask), T)
    place, offsets = np.zeros(E + 2, np.int64), carray(_longs(expert_offsets), E + 1)
    sums_E, keys, real, doubtful = np.zeros(E), np.empty(-(-E // 8) * 8, np.int64), 0, 0
    for t in range(T):
        if mask != 0 and not is_real[t]:
            for j in range(k):
                ids_TK[t, j], w_TK[t, j] = -1, 0
            place[E + 1] += k
            continue
        if not is_chosen and best(by_TE[t], ids_TK[t], keys):
            choice_N[doubtful] = t
            doubtful += 1
        if doubtful:
            continue
        real += 1
        for e in range(E):
            sums_E[e] += p_TE[t, e]
        for j in range(k):
            e = ids_TK[t, j]
            w_TK[t, j] = s_TE[t, e]
            place[e + 1] += 1
        _weigh(w_TK[t], weight, eps, scale)
    if doubtful:
        return doubtful
    _group(ids_TK, w_TK, place, offsets, carray(_longs(token_index), T * k), choice_N, carray(_floats(weights), T * k))
    loads_E, aligned = carray(_longs(requested), E), 0.0
    for e in range(E):
        loads_E[e] = offsets[e + 1] - offsets[e]
        aligned += loads_E[e] * sums_E[e]
    carray(_floats(balance), 1)[0] = aligned * E / (max(offsets[E], 1) * max(real, 1))
    return 0


@jit
def _weigh(w_K, weight, eps, scale):
    """Scores to weights, in place."""
    if weight == SOFTMAX:
        top = w_K[0]
        for j in range(w_K.shape[0]):
            top = max(top, w_K[j])
        for j in range(w_K.shape[0]):
            w_K[j] = math.exp(w_K[j] - top)
    if weight in (RENORMALIZE, SOFTMAX):
        total = np.float32(eps if weight == RENORMALIZE else 0.0)
        for j in range(w_K.shape[0]):
            total += w_K[j]
        total = max(total, _LEAST_SUM)
        for j in range(w_K.shape[0]):
            w_K[j] /= total
    for j in range(w_K.shape[0]):
        if weight == SIGMOID:
            w_K[j] = 1 / (1 + math.exp(-w_K[j]))
        w_K[j] *= scale


@jit
def _group(ids_TK, w_TK, place, offsets, token_N, choice_N, weights_N):
    """Sort by expert, by counting: `place` holds how often each expert stands in `ids_TK`, one place further on."""
    T, k = ids_TK.shape
    E = offsets.shape[0] - 1
    for e in range(E + 1):
        place[e + 1] += place[e]
        offsets[e] = place[e]
    for t in range(T):
        for j in range(k):
            e = ids_TK[t, j]
            n = place[e if e >= 0 else E]
            place[e if e >= 0 else E] = n + 1
            token_N[n], choice_N[n], weights_N[n] = t, j, w_TK[t, j]


@jit
def gradients(
    scores, topk_ids, token_index, choice, requested, T, E, k, weight, eps, scale,
    grad_topk_weights, grad_weights, grad_balance, grad_scores,
):  # fmt: skip
    """Write the gradient of the scores (T, E).

    The address of a gradient that is missing is 0; so is that of `balance` where its probabilities are not the scores.
    """
    N = T * k
    s_TE, grad_TE = carray(_floats(scores), (T, E)), carray(_floats(grad_scores), (T, E))
    ids_TK, loads_E = carray(_longs(topk_ids), (T, k)), carray(_longs(requested), E)
    token_N, choice_N, of_weights_N = (
        carray(_longs(token_index), N),
        carray(_longs(choice), N),
        carray(_floats(grad_weights), N),
    )
    of_topk_TK, of_balance = carray(_floats(grad_topk_weights), (T, k)), carray(_floats(grad_balance), 1)
    g_TK, each_E, kept, real = np.zeros((T, k), np.float32), np.zeros(E, np.float32), 0, 0
    if grad_topk_weights != 0:
        g_TK[:] = of_topk_TK
    if grad_weights != 0:
        for n in range(N):
            g_TK[token_N[n], choice_N[n]] += of_weights_N[n]
    if grad_balance != 0:
        for e in range(E):
            kept += loads_E[e]
        real = kept // k
        for e in range(E):
            each_E[e] = of_balance[0] * E * loads_E[e] / (max(kept, 1) * max(real, 1))
    gates_K = np.empty(k, np.float32)
    for t in range(T):
        if ids_TK[t, 0] < 0:
            grad_TE[t] = 0
            continue
        grad_TE[t] = each_E
        for j in range(k):
            gates_K[j] = s_TE[t, ids_TK[t, j]]
        _unweigh(g_TK[t], gates_K, weight, eps, scale)
        for j in range(k):
            grad_TE[t, ids_TK[t, j]] += g_TK[t, j]


@jit
def _unweigh(g_K, gates_K, weight, eps, scale):
    """The gradient of weights to that of scores, in place."""
    k, total, mean = g_K.shape[0], np.float32(0), np.float32(0)
    for j in range(k):
        g_K[j] *= scale
    if weight == SIGMOID:
        for j in range(k):
            w = np.float32(1 / (1 + math.exp(-gates_K[j])))
            g_K[j] *= w * (1 - w)
    if weight == RENORMALIZE:
        for j in range(k):
            total += gates_K[j]
        total = np.float32(total + eps)
        for j in range(k):
            mean += g_K[j] * gates_K[j]
        floor = max(total, _LEAST_SUM)
        mean = mean / floor if total >= _LEAST_SUM else np.float32(0)
        for j in range(k):
            g_K[j] = (g_K[j] - mean) / floor
    if weight == SOFTMAX:
        _weigh(gates_K, SOFTMAX, 0.0, 1.0)
        for j in range(k):
            mean += g_K[j] * gates_K[j]
        for j in range(k):
            g_K[j] = gates_K[j] * (g_K[j] - mean)
