"""Soft MoE: its paper's equations, and the layer around it."""

import numpy as np
import pytest
import torch

import gatelab
from gatelab import testing

D, E = 16, 3


def made(slots=2, seed=0):
    torch.manual_seed(seed)
    return gatelab.create_router("soft-moe", D, E, slots_per_expert=slots)


def as_published(router, experts, x_SD):
    """One sequence in NumPy and float64, from the paper's equations 1-3 and its normalisation."""
    x = x_SD.double().numpy()
    phi = router.score.slots.detach().double().numpy()
    unit = [v / np.sqrt((v**2).sum(1, keepdims=True) + 1e-6) for v in (x, phi)]
    logits = float(router.score.scale.detach()) * unit[0] @ unit[1].T  # (S, E·P)
    dispatch = np.exp(logits) / np.exp(logits).sum(0, keepdims=True)
    combine = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    slots = dispatch.T @ x
    out = np.zeros_like(slots)
    P = router.slots_per_expert
    for i in range(len(slots)):
        up = slots[i] @ experts.gate_up_proj[i // P].detach().double().numpy().T
        gate, up = up[: len(up) // 2], up[len(up) // 2 :]
        out[i] = (gate / (1 + np.exp(-gate)) * up) @ experts.down_proj[i // P].detach().double().numpy().T
    return combine @ out


@pytest.mark.parametrize("slots", [1, 4])
def test_the_layer_is_the_published_one(slots):
    router, experts = made(slots), gatelab.Experts(E, D, 8)
    with torch.no_grad():
        router.score.scale.fill_(3.0)
    x = torch.randn(2, 7, D)
    y, routing = gatelab.MoE(router, experts)(x)
    for b in range(2):
        expected = torch.from_numpy(as_published(router, experts, x[b])).float()
        torch.testing.assert_close(y[b].detach(), expected, rtol=1e-4, atol=1e-6)
    assert routing.dispatch(x.flatten(0, 1)).shape == (E * 2 * slots, D)


def test_padding_changes_nothing_and_gets_nothing():
    layer = gatelab.MoE(made(), gatelab.Experts(E, D, 8))
    x = torch.randn(2, 6, D)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]])
    filled = torch.where(mask[..., None] > 0, x, torch.nan)
    y, routing = layer(filled, token_mask=mask)
    torch.testing.assert_close(y[:1, :4], layer(x[:1, :4])[0])
    assert not y[0, 4:].any()
    assert not y[1].any()
    assert routing.experts_per_token.tolist() == [E] * 4 + [0] * 8


def test_views_agree():
    routing = made()(torch.randn(2, 5, D))
    weights, ids = routing.topk()
    dense = routing.to_dense()
    torch.testing.assert_close(dense.sum(1), torch.ones(10))
    torch.testing.assert_close(dense.gather(1, ids), weights)
    assert routing.tokens_per_expert.tolist() == [4, 4, 4]  # 2 sequences × 2 slots
    assert routing.expert_offsets.tolist() == [0, 4, 8, 12]
    np.testing.assert_allclose(routing.to_scipy().toarray(), dense.detach().numpy())
    summary = routing.summary()
    assert summary.requested.tolist() == [4, 4, 4]
    assert float(summary.num_tokens) == 10


def test_it_learns():
    layer = gatelab.MoE(made(), gatelab.Experts(E, D, 8))
    y, _ = layer(torch.randn(2, 5, D))
    y.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in layer.parameters())


def test_bfloat16_layers():
    layer = gatelab.MoE(made(), gatelab.Experts(E, D, 8))
    x = torch.randn(2, 5, D, generator=torch.Generator().manual_seed(1)).bfloat16()
    wide, _ = layer(x.float())
    narrow, _ = layer.to(torch.bfloat16)(x)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), wide, rtol=0.05, atol=0.02)  # 8 bits of mantissa, a few roundings


def test_what_it_cannot_do_is_said():
    with pytest.raises(ValueError, match="top_k=2"):
        gatelab.create_router("soft-moe", D, E, 2)
    with pytest.raises(ValueError, match="slots_per_expert=0"):
        gatelab.create_router("soft-moe", D, E, slots_per_expert=0)
    with pytest.raises(ValueError, match="forced"):
        made()(torch.zeros(1, 4, D), forced=torch.zeros(1, 4, 1, dtype=torch.int64))


def test_its_contract_with_several_slots():
    testing.check_router(lambda: gatelab.create_router("soft-moe", D, E, slots_per_expert=3))


def test_cost():
    router = made(2)
    assert router.num_parameters == D * E * 2 + 1
    assert router.flops(10) == 10 * 6 * D * E * 2
