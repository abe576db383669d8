"""The gate on a block of tokens. Axes: T tokens, K choices, C columns, which are the experts with every group padded.

A float is compared as the int32 of the same order: the maximum of an int32 over a warp is one instruction, and the
least int32, below −inf, is free to mark what is not to be chosen.
"""

import torch
import triton
import triton.language as tl

NOT_TO_BE_CHOSEN = tl.constexpr(-(2**31))
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


@triton.jit
def _ordered(x):
    """float32 to int32 of the same order; −0 equals 0, and NaN counts as inf, so that ids stay valid."""
    x = tl.where(x == x, tl.where(x == 0, 0.0, x), float("inf"))
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _first_best(key_TC, index_C, num_columns: tl.constexpr):
    """(T,) the least index of the largest key of each row."""
    best_T = tl.max(key_TC, axis=1)
    return tl.min(tl.where(key_TC == best_T[:, None], index_C[None, :], num_columns), axis=1)


@triton.jit
def _softmax(z_TC):
    """Softmax and logsumexp of each row."""
    top_T = tl.max(z_TC, axis=1)
    exp_TC = tl.exp(z_TC - top_T[:, None])
    sum_T = tl.sum(exp_TC, axis=1)
    return exp_TC / sum_T[:, None], top_T + tl.log(sum_T)


@triton.jit
def _softplus(z):
    """log(1 + eᶻ), also where 1 + eᶻ rounds: log(1 + u) · u / ((1 + u) − 1) takes the rounding out again."""
    u = tl.exp(-tl.abs(z))
    rounded = 1 + u
    log1p = tl.where(rounded == 1, u, tl.log(rounded) * (u / tl.where(rounded == 1, 1.0, rounded - 1)))
    return tl.maximum(z, 0.0) + log1p


@triton.jit
def _sigmoid(z):
    u = tl.exp(-tl.abs(z))
    return tl.where(z >= 0, 1.0, u) / (1 + u)


@triton.jit
def _scores(z_TC, softmax_TC, ACTIVATION: tl.constexpr):
    s_TC = softmax_TC
    if ACTIVATION == "sigmoid":
        s_TC = _sigmoid(z_TC)
    if ACTIVATION == "sqrt-softplus":
        s_TC = tl.sqrt(tl.maximum(_softplus(z_TC), TINY))
    return s_TC


@triton.jit
def _in_best_groups(
    by_TGe, NUM_GROUPS: tl.constexpr, SIZE: tl.constexpr, KEEP_GROUPS: tl.constexpr, TWO_BEST: tl.constexpr
):
    """(T, G, 1) whether a group is one of the best; padding in `by` is −inf."""
    G: tl.constexpr = by_TGe.shape[1]
    S: tl.constexpr = by_TGe.shape[2]
    by_TGe = tl.where(by_TGe == by_TGe, by_TGe, float("inf"))
    group_TG = tl.max(by_TGe, axis=2)
    if TWO_BEST and SIZE > 1:
        within = tl.arange(0, S)[None, None, :]
        at_TG = tl.min(tl.where(by_TGe == group_TG[:, :, None], within, S), axis=2)
        group_TG += tl.max(tl.where(within == at_TG[:, :, None], float("-inf"), by_TGe), axis=2)
    groups = tl.arange(0, G)
    key_TG = tl.where(groups[None, :] < NUM_GROUPS, _ordered(group_TG), NOT_TO_BE_CHOSEN)
    open_TG = tl.zeros_like(key_TG)
    for _ in range(KEEP_GROUPS):
        hit_TG = groups[None, :] == _first_best(key_TG, groups, G)[:, None]
        open_TG = tl.where(hit_TG, 1, open_TG)
        key_TG = tl.where(hit_TG, NOT_TO_BE_CHOSEN, key_TG)
    return open_TG[:, :, None]


@triton.jit
def forward(
    logits_ptr,
    bias_ptr,
    mask_ptr,
    weights_ptr,
    ids_ptr,
    logsumexp_ptr,
    counts_ptr,
    T,
    scale,
    E: tl.constexpr,
    K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ON_LOGITS: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    KEEP_GROUPS: tl.constexpr,
    TWO_BEST: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
):
    """Each program goes through blocks of tokens and writes its own row of `counts` (programs, E)."""
    SIZE: tl.constexpr = E // NUM_GROUPS
    columns = tl.arange(0, G * S)
    if NUM_GROUPS == 1:
        experts, valid = columns, columns < E
    else:
        experts = columns // S * SIZE + columns % S
        valid = (columns % S < SIZE) & (columns // S < NUM_GROUPS)
    counts_C = tl.zeros([G * S], tl.int32)
    block = tl.program_id(0)
    while block < tl.cdiv(T, BLOCK_T):
        tokens = block * BLOCK_T + tl.arange(0, BLOCK_T).to(tl.int64)
        exists = tokens < T
        real = exists
        if mask_ptr is not None:
            real = tl.load(mask_ptr + tokens, mask=exists, other=0) != 0
        cells = tokens[:, None] * E + experts[None, :]
        z_TC = tl.load(logits_ptr + cells, mask=real[:, None] & valid[None, :], other=0.0).to(tl.float32)
        z_TC = tl.where(valid[None, :], z_TC, float("-inf"))
        softmax_TC, logsumexp_T = _softmax(z_TC)
        s_TC = _scores(z_TC, softmax_TC, ACTIVATION)
        by_TC = z_TC if ON_LOGITS else s_TC
        if bias_ptr is not None:
            by_TC += tl.load(bias_ptr + experts, mask=valid, other=0.0).to(tl.float32)[None, :]
        key_TC = tl.where(valid[None, :], _ordered(by_TC), NOT_TO_BE_CHOSEN)
        if NUM_GROUPS > 1:
            by_TGe = tl.reshape(tl.where(valid[None, :], by_TC, float("-inf")), (BLOCK_T, G, S))
            open_TGe = tl.broadcast_to(
                _in_best_groups(by_TGe, NUM_GROUPS, SIZE, KEEP_GROUPS, TWO_BEST), (BLOCK_T, G, S)
            )
            key_TC = tl.where(tl.reshape(open_TGe, (BLOCK_T, G * S)) != 0, key_TC, NOT_TO_BE_CHOSEN)

        choice_TC = tl.full([BLOCK_T, G * S], K, tl.int32)
        for k in range(K):
            hit_TC = columns[None, :] == _first_best(key_TC, columns, G * S)[:, None]
            choice_TC = tl.where(hit_TC, k, choice_TC)
            key_TC = tl.where(hit_TC, NOT_TO_BE_CHOSEN, key_TC)
        chosen_TC = choice_TC < K

        w_TC = tl.where(chosen_TC, s_TC, 0.0)
        if RENORMALIZE:
            w_TC = w_TC / tl.maximum(tl.sum(w_TC, axis=1), 1e-20)[:, None]
        to_TC, stored = tokens[:, None] * K + choice_TC, chosen_TC & exists[:, None]
        ids_TC = tl.where(real[:, None], experts[None, :], -1)
        tl.store(weights_ptr + to_TC, tl.where(real[:, None], w_TC * scale, 0.0), mask=stored)
        tl.store(ids_ptr + to_TC, ids_TC.to(tl.int64), mask=stored)
        tl.store(logsumexp_ptr + tokens, tl.where(real, logsumexp_T, 0.0), mask=exists)
        counts_C += tl.sum((chosen_TC & real[:, None]).to(tl.int32), axis=0)
        block += tl.num_programs(0)
    tl.store(counts_ptr + tl.program_id(0) * E + experts, counts_C, mask=valid)


@triton.jit
def backward(
    logits_ptr,
    ids_ptr,
    grad_weights_ptr,
    grad_logsumexp_ptr,
    grad_ptr,
    T,
    scale,
    E: tl.constexpr,
    K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """The scores are computed again: reading them would take as long as reading the logits."""
    experts = tl.arange(0, BLOCK_E)
    tokens = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T).to(tl.int64)
    exists, valid = tokens < T, experts < E
    g_TE = tl.zeros([BLOCK_T, BLOCK_E], tl.float32)
    chosen_TE = g_TE > 0
    for k in range(K):
        ids_T = tl.load(ids_ptr + tokens * K + k, mask=exists, other=-1).to(tl.int32)
        g_T = tl.load(grad_weights_ptr + tokens * K + k, mask=exists, other=0.0)
        hit_TE = experts[None, :] == ids_T[:, None]
        g_TE = tl.where(hit_TE, g_T[:, None] * scale, g_TE)
        chosen_TE = chosen_TE | hit_TE
    real = tl.load(ids_ptr + tokens * K, mask=exists, other=-1) >= 0
    cells = tokens[:, None] * E + experts[None, :]
    z_TE = tl.load(logits_ptr + cells, mask=real[:, None] & valid[None, :], other=0.0).to(tl.float32)
    z_TE = tl.where(valid[None, :], z_TE, float("-inf"))
    softmax_TE, _ = _softmax(z_TE)
    s_TE = _scores(z_TE, softmax_TE, ACTIVATION)

    grad_s_TE = g_TE
    if RENORMALIZE:
        sum_T = tl.sum(tl.where(chosen_TE, s_TE, 0.0), axis=1)
        floored_T = tl.maximum(sum_T, 1e-20)
        mean_T = tl.where(sum_T >= 1e-20, tl.sum(g_TE * (s_TE / floored_T[:, None]), axis=1), 0.0)
        grad_s_TE = tl.where(chosen_TE, (g_TE - mean_T[:, None]) / floored_T[:, None], 0.0)

    if ACTIVATION == "softmax":
        grad_TE = s_TE * (grad_s_TE - tl.sum(s_TE * grad_s_TE, axis=1)[:, None])
    elif ACTIVATION == "sigmoid":
        grad_TE = grad_s_TE * s_TE * _sigmoid(-z_TE)
    else:
        clamped_TE = _softplus(z_TE) < TINY
        grad_TE = tl.where(clamped_TE, 0.0, grad_s_TE * _sigmoid(z_TE) / (2 * s_TE))
    grad_TE += tl.load(grad_logsumexp_ptr + tokens, mask=exists, other=0.0)[:, None] * softmax_TE
    grad_TE = tl.where(real[:, None], grad_TE, 0.0)
    tl.store(grad_ptr + cells, grad_TE.to(grad_ptr.dtype.element_ty), mask=exists[:, None] & valid[None, :])
