"""Every auxiliary loss on numbers that can be checked by hand, and at perfect balance."""

import math
import multiprocessing
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from gatelab import Context, Router, Selection
from gatelab.routers.balance import (
    CommunicationLoss,
    DeviceLoss,
    EntropyLoss,
    GShardLoss,
    ImportanceLoss,
    LoadLoss,
    SwitchLoss,
    ZLoss,
)
from gatelab.routers.select import TopK

GATES = torch.tensor([[0.5, 0.4, 0.1], [0.3, 0.3, 0.4], [0.1, 0.2, 0.7], [0.8, 0.2, 0.0]])


def router_of(gates: Tensor, select, *balance) -> Router:
    """A router whose scores and probabilities are the given (T, E) gates."""
    return Router(
        score=lambda ctx: gates.log(), activation=torch.exp, select=select, balance=balance, num_experts=gates.shape[1]
    )


def losses_of(gates: Tensor, select, *balance, rows: int = 1, token_mask=None) -> dict[str, float]:
    hidden = torch.zeros(rows, gates.shape[0] // rows, 2)
    return {k: float(v) for k, v in router_of(gates, select, *balance)(hidden, token_mask=token_mask).losses.items()}


def to(ids):
    """A selection of the given (T, K) ids, whatever the scores."""
    return lambda scores, ctx: Selection(torch.tensor(ids))


def test_gshard():
    # first choices 0, 2, 2, 0: f = (1/2, 0, 1/2); P = (1.7, 1.1, 1.2)/4 = (.425, .275, .3)
    # 3 · (.5 · .425 + .5 · .3) = 3 · .3625 = 1.0875
    assert losses_of(GATES, TopK(2), GShardLoss(1.0)) == {"gshard": pytest.approx(1.0875)}
    assert losses_of(GATES, TopK(2), GShardLoss(0.01))["gshard"] == pytest.approx(0.010875)


def test_switch():
    # top-2 of each row: {0,1}, {2,0 or 1}, {2,1}, {0,1}; row 2 ties, so its choices are fixed: {2, 0}
    # n = (3, 3, 2)... counted: 0 in rows 1, 2, 4; 1 in rows 1, 3, 4; 2 in rows 2, 3
    # 3 · (3/8 · .425 + 3/8 · .275 + 2/8 · .3) = 3 · (.2625 + .075) = 1.0125
    ids = [[0, 1], [2, 0], [2, 1], [0, 1]]
    assert losses_of(GATES, to(ids), SwitchLoss(1.0)) == {"switch": pytest.approx(1.0125)}
    # top-1 counts first choices alone, so it is GShard's
    assert losses_of(GATES, TopK(1), SwitchLoss(1.0)) == {"switch": pytest.approx(1.0875)}


def test_switch_per_sequence():
    # rows (t0, t1) and (t2, t3), top-1 ids (0, 2) and (2, 0): f = (1/2, 0, 1/2) in both
    # P = (.4, .35, .25): 3 · (.2 + .125) = .975;  P = (.45, .2, .35): 3 · (.225 + .175) = 1.2;  mean 1.0875
    # (equal to the micro-batch's, since f is the same in both rows)
    assert losses_of(GATES, TopK(1), SwitchLoss(1.0, scope="sequence"), rows=2) == {
        "switch-sequence": pytest.approx(1.0875)
    }
    # all tokens of a row on one expert, the rows on different ones: even over the batch, not over a sequence
    gates = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])
    found = losses_of(gates, TopK(1), SwitchLoss(1.0), SwitchLoss(1.0, scope="sequence"), rows=2)
    # batch: 2 · (1/2 · .5 + 1/2 · .5) = 1;  sequence: 2 · (1 · .9 + 0 · .1) = 1.8 in either row
    assert found == {"switch": pytest.approx(1.0), "switch-sequence": pytest.approx(1.8)}


def test_a_row_of_padding_is_no_sequence():
    gates = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])
    mask = torch.tensor([[True, False], [False, False]])
    parts = [SwitchLoss(1.0, scope="sequence"), DeviceLoss(1.0, 2, 2), CommunicationLoss(1.0, 2, 2, 1)]
    # one real token with p = (.9, .1) on expert 0: 2 · 1 · .9 = 1.8; with one expert a device, all three say the same
    assert losses_of(gates, TopK(1), *parts, rows=2, token_mask=mask) == {
        "switch-sequence": pytest.approx(1.8),
        "device": pytest.approx(1.8),
        "communication": pytest.approx(1.8),
    }


def test_importance():
    # sums (1.7, 1.1, 1.2), mean 4/3; population variance (.3667² + .2333² + .1333²)/3 = .068889
    # over (4/3)² = 1.7778: .03875
    assert losses_of(GATES, TopK(2), ImportanceLoss(1.0)) == {"importance": pytest.approx(0.03875)}


def test_importance_of_the_weights():
    # top-1 keeps .5, .4, .7, .8 on experts 0, 2, 2, 0: importance (1.3, 0, 1.1), mean .8
    # variance (.5² + .8² + .3²)/3 = .98/3; over .64: .510417
    assert losses_of(GATES, TopK(1), ImportanceLoss(1.0, sparse=True)) == {"importance": pytest.approx(0.98 / 3 / 0.64)}


def test_z():
    # log Σ exp(log gates) = log 1 = 0; at z = 0 over 3 experts (ln 3)² = 1.2069
    assert losses_of(GATES, TopK(1), ZLoss(1.0))["z"] == pytest.approx(0.0, abs=1e-12)
    assert losses_of(torch.ones(4, 3), TopK(1), ZLoss(1.0)) == {"z": pytest.approx(math.log(3) ** 2)}


def test_entropy():
    # rows (1/2, 1/2, 0) and (1, 0, 0): (ln 2 + 0)/2
    gates = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    assert losses_of(gates, TopK(1), EntropyLoss(1.0)) == {"entropy": pytest.approx(math.log(2) / 2)}
    assert losses_of(torch.full((4, 8), 1 / 8), TopK(1), EntropyLoss(0.1)) == {
        "entropy": pytest.approx(0.1 * math.log(8))
    }


def test_load():
    # k = 1, z = (0, 1, 0), noise made them (2, 1, 0), σ = 2. Threshold: for expert 0, which is in, the second, 1;
    # for the others the first, 2
    # P = Φ((0 - 1)/2), Φ((1 - 2)/2), Φ((0 - 2)/2) = Φ(-.5), Φ(-.5), Φ(-1) = .308538, .308538, .158655
    # mean .258577, variance (2 · .049961² + .099922²)/3 = .0049922; over .066862: .074664
    ctx = Context(torch.zeros(1, 1, 2), num_experts=3)
    ctx.logits, ctx.noisy_logits, ctx.noise_std = (
        torch.tensor([[0.0, 1, 0]]),
        torch.tensor([[2.0, 1, 0]]),
        torch.tensor(2.0),
    )
    assert float(LoadLoss(1.0, 1).losses(ctx)["load"]) == pytest.approx(0.074664, rel=1e-4)
    # V-MoE takes the first for all: Φ(-1), Φ(-.5), Φ(-1); mean .208616, the same variance; over .043521: .114709
    assert float(LoadLoss(1.0, 1, excluding=False).losses(ctx)["load"]) == pytest.approx(0.114709, rel=1e-4)
    ctx.noise_std = None
    assert LoadLoss(1.0, 1).losses(ctx) == {}


def test_devices():
    # E = 4 on D = 2 devices {0, 1}, {2, 3}; ids {0, 1} and {0, 2}: f = (2, 1, 1, 0)/4, P = (.35, .25, .25, .15)
    # device: 2 · (3/4 · .6 + 1/4 · .4) = 1.1
    # communication, M = 2: devices reached (2, 1), f'' = 2/(2 · 2) · (2, 1) = (1, 1/2): 1 · .6 + 1/2 · .4 = .8
    gates = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.3, 0.2, 0.3, 0.2]])
    found = losses_of(gates, to([[0, 1], [0, 2]]), DeviceLoss(1.0, 4, 2), CommunicationLoss(1.0, 4, 2, 2))
    assert found == {"device": pytest.approx(1.1), "communication": pytest.approx(0.8)}
    # K = 3, M = 2, ids {0, 1, 2} and {0, 1, 3}: both reach both devices, f'' = 2/(2 · 2) · (2, 2) = (1, 1): 1
    found = losses_of(gates, to([[0, 1, 2], [0, 1, 3]]), CommunicationLoss(1.0, 4, 2, 2))
    assert found == {"communication": pytest.approx(1.0)}
    one_each = losses_of(gates, to([[0, 1], [0, 2]]), DeviceLoss(1.0, 4, 4), SwitchLoss(1.0))
    assert one_each["device"] == pytest.approx(one_each["switch"])


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_perfect_balance(k):
    # uniform p, and every expert chosen equally often, first and later: E = 6, T = 6, token t to t, t+1, ... mod 6
    E = 6
    ids = [[(t + j) % E for j in range(k)] for t in range(E)]
    parts = [SwitchLoss(1.0), GShardLoss(1.0), ImportanceLoss(1.0), ImportanceLoss(1.0, sparse=True)]
    parts += [SwitchLoss(1.0, scope="sequence"), SwitchLoss(1.0, scope="global-batch"), DeviceLoss(1.0, E, 3)]
    for part in parts:
        (value,) = losses_of(torch.full((E, E), 1 / E), to(ids), part).values()
        assert value == pytest.approx(0.0 if isinstance(part, ImportanceLoss) else 1.0, abs=1e-6)
    # each token on M = 2 devices of one expert each, evenly
    ids = [[t % 2, 2 + t % 2] for t in range(4)]
    assert losses_of(torch.full((4, 4), 0.25), to(ids), CommunicationLoss(1.0, 4, 4, 2)) == {
        "communication": pytest.approx(1.0)
    }


def test_losses_of_one_name_add_up():
    one = losses_of(GATES, TopK(1), SwitchLoss(0.75), ZLoss(1.0))
    assert losses_of(GATES, TopK(1), SwitchLoss(0.5), ZLoss(1.0), SwitchLoss(0.25)) == pytest.approx(one)


def test_dropped_assignments_count_as_requested():
    keep = torch.tensor([[True], [False], [False], [True]])

    def dropping(scores, ctx):
        return Selection(scores.topk(1).indices, keep=keep)

    # What drops goes part by part, the other in one pass: sums in another order.
    expected = pytest.approx(losses_of(GATES, TopK(1), SwitchLoss(1.0)), rel=1e-6)
    assert losses_of(GATES, dropping, SwitchLoss(1.0)) == expected


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(2, 6))
def test_padding_changes_no_loss(seed, k, E):
    g = torch.Generator().manual_seed(seed)
    gates = torch.rand(3 * 5, E, generator=g).softmax(1)
    mask = torch.rand(3, 5, generator=g) < 0.6
    k = min(k, E)
    parts = [SwitchLoss(1.0), GShardLoss(1.0), ZLoss(1.0), EntropyLoss(1.0), ImportanceLoss(1.0)]
    masked = losses_of(gates, TopK(k), *parts, rows=3, token_mask=mask)
    real = mask.flatten()
    alone = losses_of(gates[real], TopK(k), *parts) if real.any() else dict.fromkeys(masked, 0.0)
    assert masked == pytest.approx(alone, rel=1e-4, abs=1e-6)
    sequence = losses_of(gates, TopK(k), SwitchLoss(1.0, scope="sequence"), rows=3, token_mask=mask)["switch-sequence"]
    rows = [
        losses_of(gates[5 * b :][:5][mask[b]], TopK(k), SwitchLoss(1.0))["switch"] for b in range(3) if mask[b].any()
    ]
    assert sequence == pytest.approx(sum(rows) / max(len(rows), 1), rel=1e-4, abs=1e-6)


def test_an_unknown_scope_is_named():
    with pytest.raises(ValueError, match="scope='layer' is unknown; choose one of micro-batch, sequence, global-batch"):
        SwitchLoss(1.0, scope="layer")  # pyright: ignore[reportArgumentType]


def test_devices_must_hold_equally_many_experts():
    for make in (lambda: DeviceLoss(1.0, 5, 2), lambda: CommunicationLoss(1.0, 5, 2, 1)):
        with pytest.raises(ValueError, match="num_groups=2 does not divide num_experts=5"):
            make()


def _rank(rank: int, path: str, found) -> None:
    minute = timedelta(minutes=1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2, timeout=minute)
    mine = GATES[[0, 3]] if rank == 0 else GATES[[1, 2]]
    router = router_of(mine, TopK(1), SwitchLoss(1.0), SwitchLoss(1.0, scope="global-batch"))
    if rank == 0:  # evaluation on one rank waits for nobody
        assert float(router.eval()(torch.zeros(1, 2, 2)).losses["switch-global-batch"]) == pytest.approx(1.95)
        router.train()
    found[rank] = {name: float(loss) for name, loss in router(torch.zeros(1, 2, 2)).losses.items()}
    dist.destroy_process_group()


def test_global_batch_over_two_ranks(tmp_path):
    # rank 0 sends both tokens to expert 0, rank 1 to expert 2: f = (1/2, 0, 1/2) over both
    # P = (.65, .3, .05): 3 · (.325 + .025) = 1.05, alone 3 · .65 = 1.95
    # P = (.2, .25, .55): 3 · (.1 + .275) = 1.125, alone 3 · .55 = 1.65;  the mean 1.0875 is the whole batch's
    with multiprocessing.Manager() as manager:
        found = manager.dict()
        spawn(_rank, (str(tmp_path / "store"), found), nprocs=2)
        assert dict(found) == {
            0: {"switch": pytest.approx(1.95), "switch-global-batch": pytest.approx(1.05)},
            1: {"switch": pytest.approx(1.65), "switch-global-batch": pytest.approx(1.125)},
        }
