"""Every metric stays on the device of its inputs.

Shown without a GPU: while the default device is `meta`, a tensor made without `device=` lands there and cannot meet
the inputs.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gatelab.bench import metrics as m

COUNTS = torch.tensor([[4, 2, 2, 0], [1, 1, 1, 1]])
TOKENS = COUNTS.sum(-1)
IDS = torch.tensor([[0, 2], [1, -1], [3, 0]])
LABELS = torch.tensor([0, 1, 0])
PROBABILITIES = torch.rand(3, 4).softmax(-1)
MASK = torch.tensor([True, True, False])
CALLS: dict[str, Callable[[], Tensor]] = {
    "churn": lambda: m.churn(IDS, IDS.flip(0), MASK),
    "co_activation": lambda: m.co_activation(IDS, 4, MASK),
    "co_activation_rate": lambda: m.co_activation_rate(COUNTS[:, :2]),
    "coefficient_of_variation": lambda: m.coefficient_of_variation(COUNTS),
    "count_by_label": lambda: m.count_by_label(LABELS, IDS, num_labels=2, num_experts=4, token_mask=MASK).assignments,
    "coverage": lambda: m.coverage(COUNTS),
    "dead_experts": lambda: m.dead_experts(COUNTS, threshold=0.1),
    "domain_specialization": lambda: m.domain_specialization(COUNTS, TOKENS),
    "drop_rate": lambda: m.drop_rate(COUNTS, COUNTS),
    "effective_experts": lambda: m.effective_experts(COUNTS),
    "experts_per_token": lambda: m.experts_per_token(IDS[:0]).mean,
    "gate_entropy": lambda: m.gate_entropy(PROBABILITIES, MASK),
    "gini": lambda: m.gini(COUNTS),
    "imbalance": lambda: m.imbalance(COUNTS),
    "load_entropy": lambda: m.load_entropy(COUNTS[:, :1]),
    "max_violation": lambda: m.max_violation(COUNTS),
    "mutual_information": lambda: m.mutual_information(COUNTS),
    "padding_waste": lambda: m.padding_waste(COUNTS, block=4),
    "per_layer": lambda: m.per_layer(m.gini, COUNTS).values,
    "saturation": lambda: m.saturation(IDS, IDS.flip(0), MASK),
    "straggler_factor": lambda: m.straggler_factor(COUNTS, num_devices=2),
    "sum_counts": lambda: m.sum_counts(COUNTS),
    "token_weighted_mean": lambda: m.token_weighted_mean(PROBABILITIES[:2], TOKENS),
    "tokens_per_expert": lambda: m.tokens_per_expert(IDS, 4, MASK),
    "top1_margin": lambda: m.top1_margin(PROBABILITIES, MASK),
    "vocabulary_specialization": lambda: m.vocabulary_specialization(COUNTS, TOKENS, min_tokens=5),
}


@pytest.mark.parametrize("name", CALLS)
def test_no_tensor_is_made_elsewhere(name):
    expected = CALLS[name]()
    with torch.device("meta"):
        figure = CALLS[name]()
    assert figure.device == expected.device
    assert torch.equal(figure, expected)


def test_every_metric_is_called():
    assert set(CALLS) == {name for name in m.__all__ if name.islower()}
