"""Per layer first: imbalances of different layers must not cancel."""

from functools import partial

import pytest
import torch

from gatelab.bench import metrics as m

# each layer sends everything to one expert, but not to the same one
COUNTS_LE = torch.tensor([[8, 0], [0, 8], [4, 4]])


def test_per_layer_worked():
    figures = m.per_layer(m.max_violation, COUNTS_LE)
    assert figures.values.tolist() == [1.0, 1.0, 0.0]
    assert (figures.mean.item(), figures.min.item(), figures.max.item()) == (pytest.approx(2 / 3), 0.0, 1.0)
    # what adding or concatenating layers would have said: (12, 12) is balanced; the mean of six experts is 4, the max 8
    assert m.max_violation(COUNTS_LE.sum(0)).item() == 0.0
    assert m.max_violation(COUNTS_LE.flatten()).item() == 1.0


def test_per_layer_takes_layers_with_different_experts():
    figures = m.per_layer(m.dead_experts, [torch.tensor([1, 0, 0]), torch.tensor([2, 2])])
    assert figures.values.tolist() == [2.0, 0.0]
    assert figures.mean.item() == 1.0


def test_per_layer_takes_metrics_with_arguments():
    # (8, 0): 8 of 8 rows; (4, 4): blocks of 8 compute 16 rows for 8
    assert m.per_layer(partial(m.padding_waste, block=8), COUNTS_LE).values.tolist() == [0.0, 0.0, 0.5]


def test_per_layer_agrees_with_leading_dimensions():
    counts_LE = torch.randint(0, 30, (5, 6))
    torch.testing.assert_close(m.per_layer(m.gini, counts_LE).values, m.gini(counts_LE))


def test_per_layer_refuses_what_is_not_layers_of_counts():
    with pytest.raises(ValueError, match="counts is empty"):
        m.per_layer(m.gini, [])
    with pytest.raises(ValueError, match=r"metric gave shape \(3,\) for a layer"):
        m.per_layer(m.gini, COUNTS_LE[None])
    with pytest.raises(ValueError, match="at least one expert"):
        m.per_layer(m.gini, COUNTS_LE[0])
