"""`router_logits`: products against float64, their gradients, what they do not depend on, when the reference runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gatelab import kernels
from gatelab.kernels.cpu import router_logits

T, D, E = 1024, 512, 64


def inputs(dtype=torch.float32, bias=True):
    generator = torch.Generator().manual_seed(0)
    shapes = [(T, D), (E, D), (E,)] if bias else [(T, D), (E, D)]
    return [torch.randn(*shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def exact(tensors):
    return [t.detach().double().requires_grad_() for t in tensors]


@pytest.fixture(params=["tiles where there are", "vectors"])
def instructions(request, monkeypatch):
    if request.param == "vectors":
        monkeypatch.setattr(router_logits, "scores_in_tiles", lambda: None)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_against_float64(dtype, bias):
    tensors = inputs(dtype, bias)
    logits = kernels.router_logits(*tensors)
    grad = torch.randn(T, E, generator=torch.Generator().manual_seed(1))
    logits.backward(grad)
    oracle = exact(tensors)
    expected = torch.nn.functional.linear(*oracle)
    expected.backward(grad.double())
    assert logits.dtype == torch.float32
    # Sums of 512 products of about 1, up to 90, in float32; the gradient of W sums 1024.
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-4)
    for ours, theirs in zip(tensors, oracle, strict=True):
        assert ours.grad.dtype == dtype
        # bfloat16 rounds the finished gradient once.
        rtol = 2**-8 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=rtol, atol=3e-4)


# One token and several, an odd one, rows past a tile and past a piece of them, experts that are no multiple of eight.
@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(1, 32, 8), (1, 1024, 64), (3, 64, 13), (71, 512, 20), (2, 96, 1), (300, 64, 40)])
def test_each_row_by_itself_at_any_size(size, dtype, two_threads):
    tokens, features, experts = size
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, features, generator=generator).to(dtype)
    weight = torch.randn(experts, features, generator=generator).to(dtype)
    assert router_logits._fits(hidden, weight) == _has_vectors(dtype)
    logits = kernels.router_logits(hidden, weight)
    torch.testing.assert_close(logits.double(), hidden.double() @ weight.double().T, rtol=1e-5, atol=1e-4)
    if router_logits._fits(hidden, weight):  # to the bit what it is alone, and beside fewer experts
        assert torch.equal(kernels.router_logits(hidden[-1:], weight[-1:]), logits[-1:, -1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(1, 32, 1), (3, 64, 13), (71, 96, 20), (130, 224, 8)])
def test_gradients_at_any_size(size, dtype, two_threads):
    tokens, features, experts = size
    generator = torch.Generator().manual_seed(0)
    shapes = ((tokens, features), (experts, features))
    hidden, weight = (torch.randn(*shape, generator=generator).to(dtype).requires_grad_() for shape in shapes)
    grad = torch.randn(tokens, experts, generator=generator)
    actual = torch.autograd.grad(kernels.router_logits(hidden, weight), [hidden, weight], grad)
    expected = (grad.double() @ weight.double(), grad.double().T @ hidden.double())
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == dtype
        rtol = 2**-8 if dtype == torch.bfloat16 else 1e-5  # rounded once
        torch.testing.assert_close(ours.double(), theirs, rtol=rtol, atol=1e-4)
    (alone,) = torch.autograd.grad(kernels.router_logits(hidden.detach(), weight), [weight], grad)
    assert torch.equal(alone, actual[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [8, 64, 70])
def test_logits_are_the_callers_own_and_on_the_cpu(tokens, dtype):
    hidden, weight = torch.ones(tokens, 64, dtype=dtype, requires_grad=True), torch.ones(32, 64, dtype=dtype)
    with torch.device("meta"):  # where new tensors go that do not say where
        logits = kernels.router_logits(hidden, weight)
    logits.mul_(2)
    assert torch.equal(logits, torch.full((tokens, 32), 128.0))


def _has_vectors(dtype):
    from llvmlite.binding import get_host_cpu_features

    return bool(get_host_cpu_features().get("avx512f" if dtype == torch.float32 else "avx512bf16"))


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_and_infinity_stay(dtype):
    hidden, weight = torch.ones(4, 64, dtype=dtype), torch.ones(9, 64, dtype=dtype)
    hidden[1, 5], hidden[2, 63] = torch.nan, torch.inf
    logits = kernels.router_logits(hidden, weight)
    assert logits[1].isnan().all()
    assert logits[2].isposinf().all()
    assert torch.equal(logits[[0, 3]], torch.full((2, 9), 64.0))


def test_large_products_without_numba(monkeypatch):
    hidden, weight = (t.detach() for t in inputs(bias=False))
    monkeypatch.setattr(router_logits, "scores_in_numba", lambda: None)
    torch.testing.assert_close(kernels.router_logits(hidden, weight), hidden @ weight.T, rtol=1e-5, atol=1e-4)


def test_strided_hidden_states_and_an_expanded_gradient():
    wide = torch.randn(T, 2 * D, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = inputs()[1]
    logits = kernels.router_logits(wide[:, ::2], weight)
    torch.testing.assert_close(logits, wide[:, ::2] @ weight.T, rtol=1e-5, atol=1e-4)
    logits.sum().backward()  # whose gradient is one number, expanded
    torch.testing.assert_close(wide.grad[:, ::2], weight.detach().sum(0).expand(T, D), rtol=1e-5, atol=1e-4)
    assert not wide.grad[:, 1::2].any()


def test_the_gradient_has_a_gradient():
    hidden, weight = inputs(bias=False)
    logits = kernels.router_logits(hidden, weight)
    (grad,) = torch.autograd.grad(logits.square().sum(), hidden, create_graph=True)  # 2 x WᵀW
    grad.sum().backward()
    # Checked against autograd in float64.
    h, w = exact([hidden, weight])
    (g,) = torch.autograd.grad((h @ w.T).square().sum(), h, create_graph=True)
    g.sum().backward()
    torch.testing.assert_close(weight.grad.double(), w.grad, rtol=1e-4, atol=1e-1)


def test_other_dtypes_are_computed_in():
    hidden, weight = (t.detach() for t in inputs(torch.bfloat16, bias=False))
    logits = kernels.router_logits(hidden, weight, dtype=torch.bfloat16)
    assert logits.dtype == torch.bfloat16
    assert torch.equal(logits, torch.nn.functional.linear(hidden, weight))
    assert kernels.router_logits(hidden, weight, dtype=torch.float64).dtype == torch.float64


def test_autocast_leaves_it_alone():
    hidden, weight = (t.detach() for t in inputs(bias=False))
    expected = kernels.router_logits(hidden, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kernels.router_logits(hidden, weight), expected)
        with kernels.use("reference"):
            assert kernels.router_logits(hidden, weight).dtype == torch.float32


def test_it_is_counted_and_compiled():
    hidden, weight = (t.detach() for t in inputs(bias=False))
    with FlopCounterMode(display=False) as counter:
        kernels.router_logits(hidden, weight)
    assert counter.get_total_flops() == 2 * T * D * E
    compiled = torch.compile(kernels.router_logits, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(hidden, weight), kernels.router_logits(hidden, weight), rtol=1e-5, atol=1e-4)


def test_no_tokens():
    assert kernels.router_logits(torch.zeros(0, D), torch.zeros(E, D)).shape == (0, E)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3), torch.zeros(2, 3)), "hidden_TD"),
        ((torch.zeros(5, 4), torch.zeros(2, 3)), "hidden_TD"),
        ((torch.zeros(5, 3), torch.zeros(2, 3), torch.zeros(3)), "bias_E"),
    ],
)
def test_wrong_shapes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        kernels.router_logits(*arguments)
