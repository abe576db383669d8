"""What a gate does to the load, as pure functions on plain tensors; docs/metrics.md is the manual.

Count first (`tokens_per_expert`, `count_by_label`, `co_activation`), sum the counts over batches and ranks
(`sum_counts`), then take the metric layer by layer (`per_layer`). Counts of different layers are never added, for their
imbalances cancel. What is counted is the caller's choice: leave evaluation and recomputed forwards out.

Axis letters: T tokens · E experts · K experts per token · L layers · V labels (token ids or domains) · G devices.
Leading dimensions in front of the named ones are kept. Padding leaves through `token_mask` (True = a real token, cast
to bool) or negative ids. Counts are int64, figures float64 and without graph; no figure is NaN where its input is not.
"""

from gatelab.bench.metrics.aggregate import PerLayer, per_layer, token_weighted_mean
from gatelab.bench.metrics.change import churn, saturation
from gatelab.bench.metrics.cost import drop_rate, padding_waste, straggler_factor
from gatelab.bench.metrics.counts import LabelCounts, co_activation, count_by_label, sum_counts, tokens_per_expert
from gatelab.bench.metrics.gate import ExpertsPerToken, experts_per_token, gate_entropy, top1_margin
from gatelab.bench.metrics.load import (
    coefficient_of_variation,
    coverage,
    dead_experts,
    effective_experts,
    gini,
    imbalance,
    load_entropy,
    max_violation,
)
from gatelab.bench.metrics.specialization import (
    co_activation_rate,
    domain_specialization,
    mutual_information,
    vocabulary_specialization,
)

__all__ = [
    "ExpertsPerToken",
    "LabelCounts",
    "PerLayer",
    "churn",
    "co_activation",
    "co_activation_rate",
    "coefficient_of_variation",
    "count_by_label",
    "coverage",
    "dead_experts",
    "domain_specialization",
    "drop_rate",
    "effective_experts",
    "experts_per_token",
    "gate_entropy",
    "gini",
    "imbalance",
    "load_entropy",
    "max_violation",
    "mutual_information",
    "padding_waste",
    "per_layer",
    "saturation",
    "straggler_factor",
    "sum_counts",
    "token_weighted_mean",
    "tokens_per_expert",
    "top1_margin",
    "vocabulary_specialization",
]
