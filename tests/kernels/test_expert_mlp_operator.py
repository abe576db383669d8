"""`expert_mlp` as an operator of torch: strides, dtypes, autocast, compilation, threads, errors."""

from typing import Any

import pytest
import torch
from expert_mlp_cases import ARGUMENTS, BACKENDS, DIFFERENTIABLE, TOLERANCE, assert_equal, make, y_and_gradients

from gatelab import kernels


@pytest.mark.parametrize("wanted", [("x_TD",), ("weights",), ("up_proj",), ("x_TD", "weights"), ("down_bias",)])
@pytest.mark.parametrize("on_input", [False, True])
def test_only_the_wanted_gradients(wanted: tuple[str, ...], on_input: bool) -> None:
    arguments = make(bias=True)
    expected = y_and_gradients(arguments, "cpu", weights_on_input=on_input)
    for name in DIFFERENTIABLE:
        arguments[name] = arguments[name].detach().requires_grad_(name in wanted)
    actual = y_and_gradients(arguments, "cpu", weights_on_input=on_input)
    assert set(actual) == {"y", *wanted}
    for name in actual:
        assert torch.equal(actual[name], expected[name]), name


def test_any_strides() -> None:
    arguments = make(bias=True)
    expected = y_and_gradients(arguments, "cpu")
    strided = {n: torch.stack([t, t], -1)[..., 0] for n, t in arguments.items()}
    strided["up_proj"] = arguments["up_proj"].transpose(1, 2).contiguous().transpose(1, 2)
    assert not any(t.is_contiguous() for t in strided.values())
    for name, tensor in strided.items():
        strided[name] = tensor.detach().requires_grad_(name in DIFFERENTIABLE)
    assert_equal(y_and_gradients(strided, "cpu"), expected, TOLERANCE[torch.float32])
    y = kernels.expert_mlp(**strided)
    y.sum().backward()  # an expanded gradient, of stride 0
    assert strided["x_TD"].grad is not None


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast(backend: str) -> None:
    arguments = make()
    low = {n: t if n in ARGUMENTS[1:4] or t is None else t.detach().bfloat16() for n, t in arguments.items()}
    with torch.autocast("cpu", torch.bfloat16):
        actual = y_and_gradients(arguments, backend)
    assert actual["y"].dtype == actual["up_proj"].dtype == torch.float32
    with kernels.use(backend):
        assert torch.equal(actual["y"].bfloat16(), kernels.expert_mlp(**low))


def test_deterministic() -> None:
    arguments = make(T=3500, D=48, I=40, K=2)
    first, second = y_and_gradients(arguments, "cpu"), y_and_gradients(arguments, "cpu")
    for name, tensor in first.items():
        assert torch.equal(second[name], tensor), name


@pytest.mark.usefixtures("two_threads")
def test_one_core_gives_the_same() -> None:
    arguments = make(T=3500, D=48, I=40, K=2)
    expected = y_and_gradients(arguments, "cpu")
    torch.set_num_threads(1)
    assert_equal(y_and_gradients(arguments, "cpu"), expected, TOLERANCE[torch.float32])


@pytest.mark.usefixtures("two_threads")
def test_inference_mode() -> None:
    arguments = make(T=3500, D=48, I=40, K=2)
    expected = kernels.expert_mlp(**arguments).detach()
    with torch.inference_mode():
        assert torch.equal(kernels.expert_mlp(**arguments), expected)


def test_compiles_without_a_graph_break() -> None:
    arguments = make(bias=True)
    expected = y_and_gradients(arguments, "cpu")
    compiled = torch.compile(kernels.expert_mlp, fullgraph=True, backend="aot_eager")
    y = compiled(**arguments)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    y.backward(grad)
    assert torch.equal(y, expected["y"])
    for name in DIFFERENTIABLE:
        assert torch.equal(arguments[name].grad, expected[name]), name


def test_operators_keep_their_promises() -> None:
    arguments = make(bias=True)
    tensors = [arguments[name] for name in ARGUMENTS]
    kernels.backend.load("cpu")
    forward, backward = torch.ops.gatelab.expert_mlp_cpu.default, torch.ops.gatelab.expert_mlp_cpu_backward.default
    torch.library.opcheck(forward, (*tensors, "swiglu", False, True))
    hidden = forward(*tensors, "swiglu", False, True)[1].detach()
    detached = [t.detach() for t in tensors]
    grad = torch.ones_like(detached[0])
    torch.library.opcheck(backward, (grad, hidden, *detached, "swiglu", False, True, True, True))


def test_second_derivative() -> None:
    arguments = make(T=5, D=3, I=2, E=3, K=2, dtype=torch.float64)
    for backend in BACKENDS:
        with kernels.use(backend):
            y = kernels.expert_mlp(**arguments)
        (grad,) = torch.autograd.grad(y.square().sum(), arguments["x_TD"], create_graph=True)
        if backend == "reference":
            grad.sum().backward()
            assert arguments["x_TD"].grad.isfinite().all()
        else:
            with pytest.raises(NotImplementedError, match="reference"):
                grad.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_callable_with_parameters_of_its_own(backend: str) -> None:
    arguments = make(activation="relu2")
    expected = y_and_gradients(arguments, backend, activation="relu2")
    scale = torch.tensor(2.0, requires_grad=True)
    with kernels.use(backend):
        y = kernels.expert_mlp(**arguments, activation=lambda h: torch.relu(h).square() * scale)
    torch.testing.assert_close(y, 2 * expected["y"])
    y.sum().backward()
    # y is linear in the scale
    torch.testing.assert_close(scale.grad, y.detach().sum() / 2)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"activation": "swish"}, "activation='swish'.*swiglu"),
        ({"activation": "gelu"}, "needs J = I"),
        ({"token_index": torch.zeros(3, dtype=torch.int32)}, "token_index"),
        ({"weights": torch.ones(3)}, "weights"),
        ({"expert_offsets": torch.zeros(3, dtype=torch.int64)}, "expert_offsets"),
        ({"x_TD": torch.ones(37, 5)}, "x_TD"),
        ({"down_proj": torch.ones(6, 5, 7)}, "down_proj"),
        ({"up_bias": torch.ones(6, 5)}, "up_bias"),
        ({"down_bias": torch.ones(6, 5)}, "down_bias"),
        ({"x_TD": torch.ones(37, 12, dtype=torch.float64)}, "autocast"),
    ],
)
def test_errors_name_the_argument_in_one_line(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match) as error:
        kernels.expert_mlp(**(make() | change))
    assert "\n" not in str(error.value)
