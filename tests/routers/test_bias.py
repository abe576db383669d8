"""Biases that follow the load."""

import pytest
import torch

from gatelab import Router, record, update_routers
from gatelab.routers.balance import SignBias
from gatelab.routers.routing import Summary
from gatelab.routers.score import LinearScore
from gatelab.routers.select import TopK


def summary(*requested: int, kept: tuple[int, ...] | None = None) -> Summary:
    load = torch.tensor(requested, dtype=torch.float32)
    return Summary(load if kept is None else torch.tensor(kept).float(), load, load.sum(), {})


def sign_gate(num_experts=6, **kwargs) -> Router:
    torch.manual_seed(0)
    return Router(
        score=LinearScore(8, num_experts),
        activation="sigmoid",
        select=TopK(2),
        balance=[SignBias(num_experts, **kwargs)],
    )


def test_the_step_goes_against_the_load():
    part = SignBias(4, rate=0.5)
    part.update([summary(7, 1, 4, 4)])  # mean 16/4 = 4: above, below, at, at
    assert part.bias.tolist() == [-0.5, 0.5, 0, 0]


def test_the_counts_of_micro_batches_are_added_before_the_sign():
    part = SignBias(3, rate=1.0)
    part.update([summary(9, 0, 0), summary(0, 5, 4)])  # 9, 5, 4: mean 6. Sign by sign it would be 0, 0, 0
    assert part.bias.tolist() == [-1, 1, 1]


def test_centred_steps_keep_the_mean():
    part = SignBias(4, rate=1.0, centred=True)
    part.update([summary(5, 1, 1, 1)])  # mean 2: signs −1, 1, 1, 1, their mean 1/2
    assert part.bias.tolist() == [-1.5, 0.5, 0.5, 0.5]


def test_requested_counts_not_what_survived_drops():
    part = SignBias(2, rate=1.0)
    part.update([summary(6, 2, kept=(2, 2))])
    assert part.bias.tolist() == [-1, 1]


def test_an_expert_exactly_at_the_mean_of_large_counts_stays():
    part = SignBias(3, rate=1.0)
    n = 2**24 - 1  # three of them no longer fit a float32 sum
    part.update([summary(n, n, n)])
    assert part.bias.tolist() == [0, 0, 0]


def test_the_bias_selects_and_does_not_weigh():
    gate = sign_gate()
    part = gate.balance[0]
    assert isinstance(part, SignBias)
    part.bias[3] = 100
    routing = gate(torch.randn(5, 8))
    weights, ids = routing.topk()
    assert bool((ids[:, 0] == 3).all())
    torch.testing.assert_close(weights, routing.scores.gather(1, ids))
    assert bool((weights < 1).all())


@pytest.mark.parametrize("pieces", [2, 4])
def test_accumulated_steps_equal_the_whole_batch_exactly(pieces):
    whole, parts = sign_gate(), sign_gate()
    for step in range(5):
        torch.manual_seed(step)
        x = torch.randn(8, 12, 8) + 1
        with record(whole) as tape:
            whole(x)
        update_routers(tape)
        tapes = []
        for piece in x.chunk(pieces):
            with record(parts) as tape:
                parts(piece)
            tapes.append(tape)
        update_routers(*tapes)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name])
    assert bool(whole.state_dict()["balance.0.bias"].any())


def test_the_state_stays_float32():
    assert sign_gate().to(torch.bfloat16).state_dict()["balance.0.bias"].dtype == torch.float32
