"""Recording, losses and state: once per step, never in evaluation, never twice under recomputation."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gatelab
from gatelab.routers.balance import Balance


class Model(nn.Module):
    """Two MoE layers, one of them hidden in a Sequential; optionally checkpointed."""

    def __init__(self, name="balanced-assignment", checkpointed=False, **kwargs):
        super().__init__()
        torch.manual_seed(0)
        self.first = gatelab.MoE(gatelab.create_router(name, 8, 4, **kwargs), gatelab.Experts(4, 8, 8))
        second = gatelab.MoE(gatelab.create_router(name, 8, 4, **kwargs), gatelab.Experts(4, 8, 8))
        self.rest = nn.Sequential(nn.Linear(8, 8), second.as_block())
        self.checkpointed = checkpointed

    def forward(self, x):
        x = x + (checkpoint(self.block, x, use_reentrant=False) if self.checkpointed else self.block(x))
        return self.rest(x)

    def block(self, x):
        return self.first(x)[0]


def step(model, x, backward_inside=False):
    with gatelab.record(model) as tape:
        loss = model(x).square().mean() + tape.aux_loss
        if backward_inside:
            loss.backward()
    if not backward_inside:
        loss.backward()
    return tape


def state(model):
    return {name: value.clone() for name, value in model.named_buffers()}


def test_finds_every_gate_by_name():
    tape = step(Model(), torch.randn(12, 8))
    assert list(tape.routings) == ["first.router", "rest.1.moe.router"]
    assert [len(r) for r in tape.routings.values()] == [1, 1]


def test_evaluation_is_not_recorded():
    model = Model().eval()
    assert step(model, torch.randn(12, 8)).entries == []


def test_aux_loss_is_the_sum_of_layers_and_has_gradients():
    model = Model("topk-softmax", switch_coefficient=1.0)
    with gatelab.record(model) as tape:
        model(torch.randn(12, 8))
    (a,), (b,) = tape.routings.values()
    torch.testing.assert_close(tape.aux_loss, a.losses["switch"] + b.losses["switch"])
    tape.aux_loss.backward()
    assert model.first.router.score.weight.grad.any()


def test_nothing_recorded_is_a_loss_of_zero():
    with gatelab.record(nn.Linear(2, 2)) as tape:
        pass
    assert float(tape.aux_loss) == 0


@pytest.mark.parametrize("backward_inside", [False, True])
def test_recomputation_is_seen_once(backward_inside):
    x = torch.randn(12, 8)
    plain, recomputed = (
        Model("topk-softmax", switch_coefficient=1.0),
        Model("topk-softmax", True, switch_coefficient=1.0),
    )
    step(plain, x)
    tape = step(recomputed, x, backward_inside)
    assert [len(r) for r in tape.routings.values()] == [1, 1]
    for (name, a), b in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


def test_a_loss_that_lost_its_gradient_is_an_error():
    model = Model("topk-softmax")
    with gatelab.record(model) as tape, torch.no_grad():
        model(torch.randn(12, 8))
    with pytest.raises(RuntimeError, match=r"'first\.router' has no gradient.*use_reentrant=False"):
        _ = tape.aux_loss


def test_state_moves_once_per_step_and_takes_all_micro_batches():
    x = torch.randn(2, 12, 8)
    model = Model()
    before = state(model)
    tapes = [step(model, part) for part in x]
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())
    gatelab.update_routers(*tapes)
    first = [s.summary().statistics["prices"] for tape in tapes for s in tape.routings["first.router"]]
    # Two micro-batches: the mean of their dual prices.
    torch.testing.assert_close(model.first.router.balance[0].prices, (first[0] + first[1]) / 2)


def test_attach_equals_the_plain_loop():
    x = torch.randn(3, 2, 12, 8)
    plain, attached = Model(), Model()
    optimizers = [torch.optim.SGD(m.parameters(), 0.1) for m in (plain, attached)]
    handle = gatelab.attach(optimizers[1], attached)
    for batch in x:
        gatelab.update_routers(*[step(plain, part) for part in batch])
        optimizers[0].step()
        for part in batch:
            attached(part).square().mean().backward()
        optimizers[1].step()
    assert all(torch.equal(value, state(attached)[name]) for name, value in state(plain).items())
    assert any(value.any() for value in state(plain).values())
    handle.remove()
    assert attached.first.router.listeners == ()


def test_warns_once_when_state_never_moves():
    router = gatelab.create_router("balanced-assignment", 4, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(150):
            router(torch.randn(2, 4))
    assert len(caught) == 1
    assert "update_routers" in str(caught[0].message)


def test_state_stays_float32():
    class Counter(Balance):
        stateful = True

        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

    with torch.device("meta"):
        part = Counter()
    for move in (lambda m: m.to(torch.bfloat16), lambda m: m.to_empty(device="cpu"), lambda m: m.half()):
        move(part)
        assert part.seen.dtype == torch.float32
    assert part.seen.device.type == "cpu"
