"""From counts to the figures of one layer in trace.json; docs/trace.md is the schema."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gatelab.bench import metrics
from gatelab.bench.trace.convert import Layer
from gatelab.bench.trace.layer import LayerCounts
from gatelab.bench.trace.vocabulary import MIN_TOKENS

TOP_TOKENS, TOP_PARTNERS, TOP_PAIRS = 8, 3, 10
COVERED = (0.5, 0.9, 0.99)


def layer_figures(layer: Layer, counts: LayerCounts, names: Sequence[str]) -> dict[str, Any]:
    """All that is said of a layer.

    Args:
        layer: converted.
        counts: of all windows.
        names: of the frequent token ids, as a reader meets them.
    """
    n_E, T = counts.kept_XE.sum(0), int(counts.tokens_X.sum())
    return {
        "name": layer.name,
        "block": layer.block,
        "gate": layer.gate,
        "num_experts": counts.num_experts,
        "zero_computation_experts": counts.num_columns - counts.num_experts,
        "tokens": T,
        "tokens_per_expert": n_E.tolist(),
        "tokens_per_expert_by_text": counts.kept_XE.tolist(),
        **_balance(n_E, T, counts),
        **_gate(T, counts),
        **_specialization(counts),
        **_together(counts.pairs_EE, T),
        "experts": _experts(counts, names),
    }


def _balance(n_E: Tensor, num_tokens: int, counts: LayerCounts) -> dict[str, Any]:
    covered_E = metrics.coverage(n_E)
    return {
        "max_violation": counts.max_violation / num_tokens,
        "max_violation_global": float(metrics.max_violation(n_E)),
        "imbalance": float(metrics.imbalance(n_E)),
        "coefficient_of_variation": float(metrics.coefficient_of_variation(n_E)),
        "gini": float(metrics.gini(n_E)),
        "load_entropy": float(metrics.load_entropy(n_E)),
        "effective_experts": float(metrics.effective_experts(n_E)),
        "dead_experts": int(metrics.dead_experts(n_E)),
        "drop_rate": 1 - counts.assigned / counts.requested if counts.requested else 0.0,
        "coverage": covered_E.tolist(),
        # 1e-9 below, for a sum that should be exactly that share
        "experts_covering": {f"{share:g}": int((covered_E < share - 1e-9).sum()) + 1 for share in COVERED},
        "devices": counts.devices,
        "straggler_factor": counts.straggler / num_tokens,
        "straggler_factor_global": float(metrics.straggler_factor(n_E, counts.devices)),
    }


def _gate(num_tokens: int, counts: LayerCounts) -> dict[str, Any]:
    chosen = int(counts.kept_XE.sum()) + counts.zero
    entropy = counts.entropy / num_tokens
    return {
        "gate_entropy": entropy,
        "gate_entropy_share": entropy / math.log(counts.num_columns) if counts.num_columns > 1 else 0.0,
        "top1_margin": counts.margin / num_tokens,
        "experts_per_token": {"min": counts.fewest, "mean": chosen / num_tokens, "max": counts.most},
        "zero_computation_share": counts.zero / chosen if chosen else 0.0,
    }


def _specialization(counts: LayerCounts) -> dict[str, Any]:
    return {
        "vocabulary_specialization": float(
            metrics.vocabulary_specialization(counts.all_VE, counts.tokens_V, MIN_TOKENS)
        ),
        "vocabulary_specialization_first": float(
            metrics.vocabulary_specialization(counts.first_VE, counts.tokens_V, MIN_TOKENS)
        ),
        "token_information": float(metrics.mutual_information(counts.all_VE)),
        "token_information_by_chance": _bias(counts.all_VE),
        "domain_specialization": metrics.domain_specialization(counts.kept_XE, counts.tokens_X).tolist(),
        "domain_information": float(metrics.mutual_information(counts.kept_XE)),
        "domain_information_by_chance": _bias(counts.kept_XE),
    }


def _bias(counts_VE: Tensor) -> float:
    """What `mutual_information` of independent counts comes out near, over the rows and columns that have any."""
    rows, columns = int((counts_VE.sum(1) > 0).sum()), int((counts_VE.sum(0) > 0).sum())
    return max(rows - 1, 0) * max(columns - 1, 0) / (2 * max(int(counts_VE.sum()), 1))


def _together(pairs_EE: Tensor, num_tokens: int) -> dict[str, Any]:
    """Which experts work together: the strongest pairs, and what an expert's closest partner sees of its tokens."""
    rate_EE, n_E = _rates(pairs_EE), pairs_EE.diagonal()
    E, alive_E = len(n_E), n_E >= MIN_TOKENS
    strongest = rate_EE.amax(1)[alive_E] if E > 1 else torch.zeros(0)
    assigned = float(n_E.sum()) / num_tokens
    rate_EE = torch.where(alive_E[:, None] & alive_E, rate_EE, 0)
    both = torch.triu(torch.maximum(rate_EE, rate_EE.T), 1)
    pairs = []
    for rate, cell in zip(*both.flatten().topk(min(TOP_PAIRS, E * E)), strict=True):
        i, j = divmod(int(cell), E)
        if rate > 0:
            i, j = (i, j) if rate_EE[i, j] >= rate_EE[j, i] else (j, i)
            lift = float(pairs_EE[i, j]) * num_tokens / float(n_E[i] * n_E[j])
            pairs.append({"expert": i, "with": j, "rate": float(rate), "lift": lift})
    return {
        "co_activation": float(strongest.mean()) if len(strongest) else 0.0,
        "co_activation_by_chance": max(assigned - 1, 0.0) / (E - 1) if E > 1 else 0.0,
        "pairs": pairs,
    }


def _rates(pairs_EE: Tensor) -> Tensor:
    """Co-activation rates with an empty diagonal: an expert is no partner of itself."""
    return metrics.co_activation_rate(pairs_EE).fill_diagonal_(0)


def _experts(counts: LayerCounts, names: Sequence[str]) -> list[dict[str, Any]]:
    """What each expert stands for: the tokens that most reliably come to it, and whom it works with."""
    share_VE = metrics.domain_specialization(counts.all_VE, counts.tokens_V)
    share_VE = torch.where((counts.tokens_V >= MIN_TOKENS)[:, None], share_VE, 0)
    # Among equal shares the more frequent token first; the addend is too small to pass another share.
    key_VE = share_VE + counts.tokens_V[:, None].double() / (1e9 * (1 + counts.tokens_V.amax())) if len(names) else None
    rate_EE = _rates(counts.pairs_EE)
    found = []
    for e in range(counts.num_experts):
        order = [] if key_VE is None else key_VE[:, e].topk(min(TOP_TOKENS, len(names))).indices.tolist()
        tokens = [
            {"token": names[v], "share": float(share_VE[v, e]), "count": int(counts.tokens_V[v])}
            for v in order
            if share_VE[v, e] > 0
        ]
        partners = rate_EE[e].topk(min(TOP_PARTNERS, counts.num_experts)).indices.tolist()
        found.append(
            {
                "tokens": tokens,
                "partners": [{"expert": j, "rate": float(rate_EE[e, j])} for j in partners if rate_EE[e, j] > 0],
            }
        )
    return found
