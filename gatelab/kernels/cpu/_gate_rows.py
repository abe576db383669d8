"""What a gate does token by token, in numba. Axes: T tokens, E experts, K choices, N = T·K."""

import numpy as np

from gatelab.kernels.cpu._assignment_rows import jit

_LEAST, _MOST = -(1 << 63), (1 << 63) - 1
_MINUS_ZERO, _INFINITY = -(1 << 31), 0x7F800000  # float32, seen as int32
_LANES = 8  # of an AVX-512 register


@jit
def topk(bits_TE, k):
    """The k largest scores of each token, and the tokens at which equal scores or NaN leave a doubt.

    The key of a score is the int32 of the same order above its id: integer maxima are vectorised without fast-math.

    Args:
        bits_TE: float32 scores, seen as int32.
        k: K.

    Returns:
        ids (T, K) int64, the largest score first, and the numbers of the doubtful rows.
    """
    T, E = bits_TE.shape
    ids_TK, doubtful, count = np.empty((T, k), np.int64), np.empty(T, np.int64), 0
    keys = np.full(-(-E // _LANES) * _LANES, _LEAST)
    for t in range(T):
        row, greatest = bits_TE[t], 0
        for e in range(E):
            bits = np.int64(row[e])
            greatest = max(greatest, bits & 0x7FFFFFFF)
            bits = 0 if bits == _MINUS_ZERO else bits
            keys[e] = ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) << 32) | e
        doubt, last = greatest > _INFINITY, np.int64(_MOST)
        for j in range(min(k + 1, E)):
            best = np.int64(_LEAST)
            for c in range(keys.shape[0]):
                best = max(best, keys[c] if keys[c] < last else np.int64(_LEAST))
            doubt |= best >> 32 == last >> 32
            if j < k:
                ids_TK[t, j] = best & 0xFFFFFFFF
            last = best
        if doubt:
            doubtful[count] = t
            count += 1
    return ids_TK, doubtful[:count]


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
