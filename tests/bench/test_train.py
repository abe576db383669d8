"""One cell: what it records, how its learning rate moves, and that evaluation leaves no trace."""

import itertools
import math

import numpy as np
import pytest
import torch
from tiny import tiny, write_text

from gatelab.bench.matching import match
from gatelab.bench.train import Training
from gatelab.bench.workloads import load_text


@pytest.fixture
def training(tmp_path):
    config = tiny("topk-softmax", steps=8)
    text = load_text(write_text(tmp_path / "text.txt"), 16)
    return Training(config, "topk-softmax", match(config, "topk-softmax").intermediate_size, 0, text)


def run(training):
    while not training.finished:
        training.advance()
    return training.result()


def test_balance_follows_from_the_recorded_loads(training):
    cell = run(training)
    load_LRE = np.array([layer["load"] for layer in cell["layers"]])
    assert load_LRE.shape == (2, 8, 4)
    assert (load_LRE.sum(-1) == 2 * 2 * 16).all()  # K · B · S
    violation_LR = load_LRE.max(-1) / load_LRE.mean(-1) - 1
    assert cell["history"]["max_violation"] == pytest.approx(violation_LR.mean(0))
    for layer, load_RE, violation_R in zip(cell["layers"], load_LRE, violation_LR, strict=True):
        total_E = load_RE[6:].sum(0)  # the last quarter of 8 steps
        assert layer["max_violation"] == pytest.approx(violation_R[6:].mean())
        assert layer["max_violation_global"] == pytest.approx(total_E.max() / total_E.mean() - 1)
        assert layer["coefficient_of_variation"] == pytest.approx(total_E.std() / total_E.mean())
        assert layer["experts_per_token"] == 2
        assert layer["drop_rate"] == 0


def test_history_starts_at_ignorance_and_a_balanced_switch_loss(training):
    history = run(training)["history"]
    # 256 logits drawn from N(0, 1): ln 256 + 1/2 nats
    assert history["train_bits_per_byte"][0] == pytest.approx(8 + 0.5 / math.log(2), abs=0.5)
    assert history["train_bits_per_byte"][-1] < history["train_bits_per_byte"][0]
    # 0.01 in each of 2 layers at balance
    assert history["aux_loss"][0] == pytest.approx(0.02, rel=0.2)


def test_learning_rate_warms_up_and_falls_to_a_tenth(training):
    rates = []
    while not training.finished:
        training.advance()
        rates.append(training.optimizer.param_groups[0]["lr"] / training.config.learning_rate)
    # warm-up is 5 % of 8 steps, less than one; then 0.1 + 0.9 (1 + cos(πt/8))/2: 1 at 0, 0.55 in the middle
    assert rates[0] == 1
    assert rates[4] == pytest.approx(0.55)
    assert rates[7] == pytest.approx(0.1 + 0.45 * (1 + math.cos(7 / 8 * math.pi)))


def test_drops_and_state_are_recorded(tmp_path):
    config = tiny("switch")
    text = load_text(write_text(tmp_path / "text.txt"), 16)
    training = Training(config, "switch", match(config, "switch").intermediate_size, 0, text)
    layer = run(training)["layers"][0]
    # 2 experts for each token asked for, fewer kept
    assert layer["experts_per_token"] == pytest.approx(2 * (1 - layer["drop_rate"]))
    assert layer["drop_rate"] > 0


def test_the_gates_state_moves_once_a_step(tmp_path):
    config = tiny("balanced-assignment")
    text = load_text(write_text(tmp_path / "text.txt"), 16)
    training = Training(config, "balanced-assignment", match(config, "balanced-assignment").intermediate_size, 0, text)
    prices = training.model.get_buffer("layers.0.moe.router.balance.0.prices")
    seen = [prices.clone()]
    while not training.finished:
        training.advance()
        seen.append(prices.clone())
    assert all(not torch.equal(before, after) for before, after in itertools.pairwise(seen))
    training.result()  # evaluates
    assert torch.equal(prices, seen[-1])
