"""Load metrics: worked numbers, then bounds, symmetries and independent formulas on random loads."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelab.bench import metrics as m

UNTIMED = settings(deadline=None)  # other jobs share the cores, a deadline would fail at random
LOADS = st.lists(st.integers(0, 10_000), min_size=1, max_size=40).map(torch.tensor)

# n = (4, 2, 2, 0), so E = 4, Σn = 8, n̄ = 2 and π = (1/2, 1/4, 1/4, 0)
SKEWED = torch.tensor([4, 2, 2, 0])
WORKED = {
    m.max_violation: 1.0,  # (4 − 2)/2
    m.imbalance: 2.0,  # 4/2
    m.coefficient_of_variation: math.sqrt(2) / 2,  # σ² = (2² + 0 + 0 + 2²)/4 = 2, σ/n̄ = √2/2
    # ordered pairs: 2·(|4−2| + |4−2| + |4−0| + |2−2| + |2−0| + |2−0|) = 2·12 = 24; 24/(2·4²·2) = 24/64
    m.gini: 0.375,
    # H = ½·ln 2 + 2·¼·ln 4 = ½·ln 2 + ln 2 = 1.5·ln 2; ln E = 2·ln 2
    m.load_entropy: 0.75,
    m.effective_experts: 2**1.5,  # exp(1.5·ln 2)
    m.dead_experts: 1.0,
}
# (value at perfect balance, value when one of the four experts gets everything: r = (4, 0, 0, 0), π = (1, 0, 0, 0))
LIMITS = {
    m.max_violation: (0.0, 3.0),  # E − 1
    m.imbalance: (1.0, 4.0),  # E
    m.coefficient_of_variation: (0.0, math.sqrt(3)),  # (3² + 1 + 1 + 1)/4 = 3 = E − 1
    m.gini: (0.0, 0.75),  # 1 − 1/E
    m.load_entropy: (1.0, 0.0),
    m.effective_experts: (4.0, 1.0),
    m.dead_experts: (0.0, 3.0),
}
EVERY = pytest.mark.parametrize("metric", list(WORKED), ids=lambda metric: metric.__name__)


@EVERY
def test_worked_example(metric):
    assert metric(SKEWED).item() == pytest.approx(WORKED[metric])


@EVERY
def test_perfect_balance_and_collapse(metric):
    balanced, collapsed = LIMITS[metric]
    assert metric(torch.tensor([7, 7, 7, 7])).item() == pytest.approx(balanced)
    assert metric(torch.tensor([0, 28, 0, 0])).item() == pytest.approx(collapsed)


@EVERY
def test_no_assignments_is_balanced_except_for_dead_experts(metric):
    expected = 4.0 if metric is m.dead_experts else LIMITS[metric][0]
    assert metric(torch.zeros(4, dtype=torch.int64)).item() == pytest.approx(expected)


@EVERY
def test_a_single_expert_is_balanced(metric):
    # MaxVio 0, imbalance 1, CV 0, Gini 0, entropy 1 (0/0 by definition), one effective expert, none dead
    expected = {m.imbalance: 1.0, m.load_entropy: 1.0, m.effective_experts: 1.0}.get(metric, 0.0)
    assert metric(torch.tensor([9])).item() == expected


@EVERY
def test_leading_dimensions_are_layers_or_batches(metric):
    counts_BLE = torch.randint(0, 50, (3, 2, 5))
    separate = [[metric(layer) for layer in batch] for batch in counts_BLE]
    torch.testing.assert_close(metric(counts_BLE), torch.tensor(separate, dtype=metric(counts_BLE).dtype))


@EVERY
def test_fractional_loads_carry_no_graph(metric):
    loads_E = torch.tensor([1.0, 0.5, 0.5, 0.0], requires_grad=True)
    assert metric(loads_E).item() == pytest.approx(WORKED[metric])  # a quarter of (4, 2, 2, 0)
    assert not metric(loads_E).requires_grad


@EVERY
@UNTIMED
@given(n=LOADS, factor=st.integers(2, 9), data=st.data())
def test_scale_and_order_of_experts_do_not_matter(metric, n, factor, data):
    order = torch.tensor(data.draw(st.permutations(range(len(n)))))
    torch.testing.assert_close(metric(n * factor), metric(n))
    torch.testing.assert_close(metric(n[order]), metric(n))


@UNTIMED
@given(n=LOADS)
def test_bounds(n):
    num_experts, eps = len(n), 1e-9  # float64 rounding
    assert -eps <= m.max_violation(n) <= num_experts - 1 + eps
    assert 1 - eps <= m.imbalance(n) <= num_experts + eps
    assert -eps <= m.coefficient_of_variation(n) <= math.sqrt(num_experts - 1) + eps
    assert -eps <= m.gini(n) <= 1 - 1 / num_experts + eps
    assert -eps <= m.load_entropy(n) <= 1 + eps
    assert 1 - eps <= m.effective_experts(n) <= num_experts + eps
    assert m.effective_experts(n) <= num_experts - m.dead_experts(n).item() + eps or n.sum() == 0


@UNTIMED
@given(n=LOADS.filter(lambda n: n.sum() > 0))
def test_against_independent_formulas(n):
    x = n.numpy().astype(float)
    assert m.max_violation(n).item() == pytest.approx((x.max() - x.mean()) / x.mean())
    assert m.coefficient_of_variation(n).item() == pytest.approx(scipy.stats.variation(x, ddof=0))
    pairs = np.abs(x[:, None] - x[None, :]).sum()
    assert m.gini(n).item() == pytest.approx(pairs / (2 * len(x) ** 2 * x.mean()), abs=1e-12)
    assert m.effective_experts(n).item() == pytest.approx(math.exp(scipy.stats.entropy(x)))
    if len(x) > 1:
        assert m.load_entropy(n).item() == pytest.approx(scipy.stats.entropy(x, base=len(x)), abs=1e-12)


def test_dead_experts_up_to_a_share_of_the_mean():
    n = torch.tensor([10, 1, 0, 29])  # n̄ = 10: a tenth of it is 1, which still counts as dead
    assert m.dead_experts(n).item() == 1
    assert m.dead_experts(n, threshold=0.1).item() == 2
    assert m.dead_experts(n, threshold=0.09).item() == 1
    assert m.dead_experts(n).dtype == torch.int64


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_dead_experts_refuses_a_threshold_that_is_no_share(threshold):
    with pytest.raises(ValueError, match=r"threshold=.* must be in \[0, 1\)"):
        m.dead_experts(SKEWED, threshold=threshold)


@EVERY
@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_a_layer_without_experts_is_refused(metric, shape):
    with pytest.raises(ValueError, match="at least one expert"):
        metric(torch.zeros(shape))


def test_counts_beyond_float32_stay_exact():
    # 2^24 + 1 is no float32: (2^24 + 1 − 2^24)/2^24 = 2^−24 would come out as 0
    n = torch.tensor([2**24 + 1, 2**24 - 1])
    assert m.max_violation(n).item() == 2.0**-24
