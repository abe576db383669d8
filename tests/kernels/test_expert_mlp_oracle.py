"""expert_mlp and group_by_expert, in every backend of the CPU, against a float64 loop over tokens."""

import pytest
import torch
from torch.nn import functional as F

from gatelab import kernels

BACKENDS = ["reference", "cpu"]
ACTIVATIONS = {
    "swiglu": lambda h: F.silu(h.chunk(2, -1)[0]) * h.chunk(2, -1)[1],
    "gelu": F.gelu,
    "relu2": lambda h: F.relu(h).square(),
}


def inputs(T, D, I, E, K, gated, bias, seed=0):
    """Tensors of a call, float32, with a tail of two dead entries that point at valid tokens."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(E, generator=g)[:K] for _ in range(T)]) if T else torch.zeros(0, K).long()
    if T > 2:
        ids[1, -1] = -1
        ids[2] = torch.where(ids[2] == E - 1, -1, ids[2])
    order, offsets = kernels.group_by_expert(ids, E)
    J = 2 * I if gated else I
    tensors = {
        "x_TD": torch.randn(T, D, generator=g),
        "weights": torch.rand(T * K, generator=g) * (ids.flatten()[order] >= 0),
        "up_proj": torch.randn(E, J, D, generator=g) / D**0.5,
        "down_proj": torch.randn(E, D, I, generator=g) / I**0.5,
    }
    if bias:
        tensors |= {"up_bias": torch.randn(E, J, generator=g), "down_bias": torch.randn(E, D, generator=g)}
    return {n: t.requires_grad_() for n, t in tensors.items()}, order // K, offsets


def oracle(tensors, token_index, offsets, activation, weights_on_input):
    """One assignment after the other, in float64."""
    t = {name: value.double() for name, value in tensors.items()}
    y = [torch.zeros(t["x_TD"].shape[1], dtype=torch.float64) for _ in range(t["x_TD"].shape[0])]
    for e in range(len(offsets) - 1):
        for n in range(int(offsets[e]), int(offsets[e + 1])):
            row, w = t["x_TD"][token_index[n]], t["weights"][n]
            h = t["up_proj"][e] @ (row * w if weights_on_input else row)
            h = h + t["up_bias"][e] if "up_bias" in t else h
            out = t["down_proj"][e] @ ACTIVATIONS[activation](h)
            out = out + t["down_bias"][e] if "down_bias" in t else out
            y[token_index[n]] = y[token_index[n]] + (out if weights_on_input else out * w)
    return torch.stack(y)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weights_on_input", [False, True])
@pytest.mark.parametrize(
    ("T", "D", "I", "E", "K", "activation", "bias"),
    [
        (1, 5, 3, 4, 2, "swiglu", False),
        (17, 8, 7, 3, 3, "swiglu", True),
        (40, 16, 9, 5, 2, "gelu", True),
        (23, 6, 11, 30, 1, "relu2", False),  # most experts have no token
    ],
)
def test_outputs_and_gradients(backend, weights_on_input, T, D, I, E, K, activation, bias):
    tensors, token_index, offsets = inputs(T, D, I, E, K, activation == "swiglu", bias)
    with kernels.use(backend):
        y = kernels.expert_mlp(
            token_index=token_index,
            expert_offsets=offsets,
            activation=activation,
            weights_on_input=weights_on_input,
            **tensors,
        )
    expected = oracle(tensors, token_index, offsets, activation, weights_on_input)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-5)
    upstream = torch.randn(T, D, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad((y * upstream).sum(), list(tensors.values()))
    theirs = torch.autograd.grad((expected * upstream).sum(), list(tensors.values()), materialize_grads=True)
    for name, a, b in zip(tensors, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"gradient of {name}: {m}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_tail_may_hold_anything(backend):
    tensors, token_index, offsets = inputs(9, 4, 3, 5, 2, True, False)
    live = torch.arange(len(token_index)) < offsets[-1]
    poisoned = torch.where(live, tensors["weights"], torch.nan).detach().requires_grad_()
    with kernels.use(backend):
        clean = kernels.expert_mlp(token_index=token_index, expert_offsets=offsets, **tensors)
        y = kernels.expert_mlp(token_index=token_index, expert_offsets=offsets, **{**tensors, "weights": poisoned})
        y.sum().backward()
    assert torch.equal(y, clean)
    assert poisoned.grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_do(backend):
    tensors, token_index, offsets = inputs(0, 4, 3, 5, 2, True, False)
    with kernels.use(backend):
        y = kernels.expert_mlp(token_index=token_index, expert_offsets=offsets, **tensors)
    assert y.shape == (0, 4)
    grad = torch.autograd.grad(y.sum(), tensors["up_proj"], materialize_grads=True)[0]
    assert not grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("T", "J", "E"), [(0, 2, 3), (1, 1, 1), (17, 3, 5), (600, 2, 37)])
def test_group_by_expert(backend, T, J, E):
    ids = torch.randint(-1, E, (T, J), generator=torch.Generator().manual_seed(0))
    with kernels.use(backend):
        order, offsets = kernels.group_by_expert(ids, E)
    flat = ids.flatten().tolist()
    groups = [[n for n, e in enumerate(flat) if e == expert] for expert in (*range(E), -1)]
    assert order.tolist() == [n for group in groups for n in group]
    assert offsets.tolist() == [sum(len(group) for group in groups[:e]) for e in range(E + 1)]
