"""Drops, padded rows, stragglers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelab.bench import metrics as m

UNTIMED = settings(deadline=None)  # other jobs share the cores, a deadline would fail at random
LOADS = st.lists(st.integers(0, 1000), min_size=1, max_size=24).map(torch.tensor)


def test_drop_rate_worked():
    # requested 6 + 1 + 1 = 8, capacity 3 keeps 3 + 1 + 1 = 5: 3 of 8 dropped
    requested, kept = torch.tensor([6, 1, 1]), torch.tensor([3, 1, 1])
    assert m.drop_rate(requested, kept).item() == 3 / 8


def test_drop_rate_counts_before_it_divides():
    # layer 1: 1 of 2 dropped; layer 2: 0 of 6. Together 1/8, not the mean of 1/2 and 0
    requested, kept = torch.tensor([[1, 1], [3, 3]]), torch.tensor([[1, 0], [3, 3]])
    assert m.drop_rate(requested, kept).tolist() == [0.5, 0.0]
    assert m.drop_rate(m.sum_counts(requested), m.sum_counts(kept)).item() == 1 / 8


def test_drop_rate_of_nothing_is_zero():
    assert m.drop_rate(torch.zeros(3), torch.zeros(3)).item() == 0.0


def test_drop_rate_refuses_swapped_arguments():
    with pytest.raises(ValueError, match="more than requested"):
        m.drop_rate(torch.tensor([3, 1]), torch.tensor([6, 1]))


@UNTIMED
@given(requested=LOADS, capacity=st.integers(0, 1000))
def test_drop_rate_under_a_capacity(requested, capacity):
    kept = requested.clamp(max=capacity)
    rate = m.drop_rate(requested, kept).item()
    assert 0.0 <= rate <= 1.0
    assert (rate == 0.0) == (capacity >= requested.max().item())


def test_padding_waste_worked():
    # blocks of 4: 5 → 8, 4 → 4, 0 → 0, 1 → 4 rows: 16 computed for 10 wanted, 6/16 wasted
    assert m.padding_waste(torch.tensor([5, 4, 0, 1]), block=4).item() == 6 / 16


def test_padding_waste_of_whole_blocks_and_of_nothing_is_zero():
    assert m.padding_waste(torch.tensor([8, 8, 8]), block=4).item() == 0.0
    assert m.padding_waste(torch.tensor([0, 0]), block=4).item() == 0.0


def test_padding_waste_is_largest_with_one_row_per_block():
    assert m.padding_waste(torch.tensor([1, 1, 1]), block=8).item() == 7 / 8  # 3 of 24 rows used


@pytest.mark.parametrize("block", [0, -4])
def test_padding_waste_refuses_a_block_without_rows(block):
    with pytest.raises(ValueError, match=f"block={block} must be at least 1"):
        m.padding_waste(torch.tensor([1]), block=block)


@UNTIMED
@given(n=LOADS, block=st.integers(1, 300))
def test_padding_waste_counts_rows(n, block):
    rows = sum(-(-x // block) * block for x in n.tolist())  # integer ceiling
    waste = m.padding_waste(n, block).item()
    assert waste == pytest.approx((rows - n.sum().item()) / rows if rows else 0.0)
    assert 0.0 <= waste <= 1 - 1 / block
    assert m.padding_waste(n, 1).item() == 0.0


def test_straggler_factor_worked():
    # two devices: (5 + 1) and (2 + 0), mean 4, so the first takes 6/4 of the mean
    n = torch.tensor([5, 1, 2, 0])
    assert m.straggler_factor(n, num_devices=2).item() == 1.5
    # the same experts placed as (5, 0 | 1, 2): 5/4
    assert m.straggler_factor(n[torch.tensor([0, 3, 1, 2])], num_devices=2).item() == 1.25


def test_straggler_factor_takes_layers():
    # devices (6, 2) and (2, 2); then (0, 4): each layer waits by itself
    layers = torch.tensor([[5, 1, 2, 0], [1, 1, 1, 1], [0, 0, 4, 0]])
    assert m.straggler_factor(layers, num_devices=2).tolist() == [1.5, 1.0, 2.0]


@UNTIMED
@given(n=LOADS.filter(lambda n: len(n) % 2 == 0), factor=st.integers(2, 5))
def test_straggler_factor_between_one_device_and_one_expert_each(n, factor):
    assert m.straggler_factor(n, 1).item() == 1.0
    torch.testing.assert_close(m.straggler_factor(n, len(n)), m.imbalance(n))
    on_two = m.straggler_factor(n, 2)
    assert 1.0 <= on_two <= 2.0
    assert on_two <= m.imbalance(n) + 1e-9  # no device can be fuller than its fullest expert, times its experts
    torch.testing.assert_close(m.straggler_factor(n * factor, 2), on_two)


@pytest.mark.parametrize("num_devices", [0, 3, 8])
def test_straggler_factor_refuses_a_split_expert(num_devices):
    with pytest.raises(ValueError, match=f"num_devices={num_devices} must divide the 4 experts"):
        m.straggler_factor(torch.tensor([1, 2, 3, 4]), num_devices)


@pytest.mark.parametrize("metric", [lambda n: m.padding_waste(n, 2), lambda n: m.drop_rate(n, n)])
def test_leading_dimensions(metric):
    counts_BLE = torch.randint(0, 50, (3, 2, 4))
    torch.testing.assert_close(
        metric(counts_BLE), torch.stack([torch.stack([metric(n) for n in batch]) for batch in counts_BLE])
    )
