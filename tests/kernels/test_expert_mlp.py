"""`expert_mlp`: a worked example, Hugging Face's experts, the cpu backend against the reference in every gradient."""

from typing import Any

import pytest
import torch
from expert_mlp_cases import BACKENDS, DIFFERENTIABLE, TOLERANCE, assert_equal, make, y_and_gradients
from torch import Tensor

from gatelab import kernels
from gatelab.kernels.activations import ACTIVATIONS
from gatelab.kernels.cpu import _expert_backward, _expert_forward, _memory
from gatelab.kernels.cpu._gemm import padded


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("on_input", [False, True])
def test_worked_example(backend: str, on_input: bool) -> None:
    # D = I = 1, squared ReLU, so expert e maps x to down_e · relu(up_e · x)². Token 0 = 2, token 1 = 3.
    x = torch.tensor([[2.0], [3.0]])
    up, down = torch.tensor([[[1.0]], [[-1.0]], [[2.0]]]), torch.tensor([[[1.0]], [[5.0]], [[0.5]]])
    # expert 0: token 0 with weight 0.5 · expert 1: token 0 with weight 1 · expert 2: tokens 0, 1 with 0.25, 2
    tokens, offsets = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 2, 4])
    weights = torch.tensor([0.5, 1.0, 0.25, 2.0])
    with kernels.use(backend):
        y = kernels.expert_mlp(x, tokens, offsets, weights, up, down, activation="relu2", weights_on_input=on_input)
    if on_input:
        # 1·1² = 1 · 5·relu(−2)² = 0 · 0.5·(2·0.5)² = 0.5, and 0.5·(2·6)² = 72
        assert y.tolist() == [[1.5], [72.0]]
    else:
        # 0.5·1·2² = 2 · 5·relu(−2)² = 0 · 0.25·0.5·4² = 2, and 2·0.5·6² = 36
        assert y.tolist() == [[4.0], [36.0]]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("on_input", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_cpu_equals_reference(activation: str, bias: bool, on_input: bool, dtype: torch.dtype) -> None:
    arguments = make(dtype=dtype, activation=activation, bias=bias)
    options = {"activation": activation, "weights_on_input": on_input}
    expected = y_and_gradients(arguments, "reference", **options)
    assert_equal(y_and_gradients(arguments, "cpu", **options), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_rows_on_many_cores(dtype: torch.dtype) -> None:
    # 5·700·2/5 = 1400 rows an expert: several blocks each, enough work for two cores
    arguments = make(T=3500, D=48, I=40, K=2, dtype=dtype)
    expected = y_and_gradients(arguments, "reference")
    assert_equal(y_and_gradients(arguments, "cpu"), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_is_as_exact_as_it_can_be(backend: str) -> None:
    arguments = make(T=400, D=64, I=64, dtype=torch.bfloat16)
    exact = {
        n: None if t is None else t.detach().double() if t.is_floating_point() else t for n, t in arguments.items()
    }
    for name in DIFFERENTIABLE:
        if exact[name] is not None:
            exact[name].requires_grad_()
    true, actual = y_and_gradients(exact, "reference"), y_and_gradients(arguments, backend)
    for name, tensor in true.items():
        error = (actual[name].double() - tensor).norm() / tensor.norm()
        assert error < 2 * 2**-8, name  # a few roundings of relative size up to 2⁻⁹ each


def test_gradients_by_finite_differences() -> None:
    arguments = make(T=5, D=3, I=2, E=3, K=2, dtype=torch.float64, bias=True)
    inputs = [arguments[n] for n in DIFFERENTIABLE]
    for backend in BACKENDS:
        with kernels.use(backend):
            assert torch.autograd.gradcheck(
                lambda *tensors: kernels.expert_mlp(**(arguments | dict(zip(DIFFERENTIABLE, tensors, strict=True)))),
                inputs,
            )


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_hugging_face(backend: str) -> None:
    from transformers.models.mixtral.configuration_mixtral import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    T, D, I, E, K = 23, 16, 8, 4, 2
    config = MixtralConfig(hidden_size=D, intermediate_size=I, num_local_experts=E, num_experts_per_tok=K)
    config._experts_implementation = "eager"
    theirs = MixtralExperts(config)
    torch.manual_seed(0)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(T, D)
    topk_weights, topk_ids = torch.rand(T, E).topk(K)
    order, offsets = kernels.group_by_expert(topk_ids, E)
    with kernels.use(backend), torch.no_grad():
        y = kernels.expert_mlp(
            x, order // K, offsets, topk_weights.flatten()[order], theirs.gate_up_proj, theirs.down_proj
        )
        torch.testing.assert_close(y, theirs(x, topk_ids, topk_weights))


@pytest.mark.parametrize("on_input", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_tail_does_not_contribute(backend: str, on_input: bool) -> None:
    arguments = make()
    N = int(arguments["expert_offsets"][-1])
    expected = y_and_gradients(arguments, backend, weights_on_input=on_input)
    arguments["token_index"][N:] = 0
    with torch.no_grad():
        arguments["x_TD"][0] = float("nan")  # token 0 goes nowhere
        arguments["weights"][N:] = float("nan")
    actual = y_and_gradients(arguments, backend, weights_on_input=on_input)
    assert (actual["weights"][N:] == 0).all()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


def test_a_nan_stays_with_its_experts() -> None:
    # 37 rows are multiplied as 38: the padding must not carry one expert's NaN into another's gradient
    arguments = make(T=37, E=3, K=1)
    arguments["expert_offsets"] = torch.tensor([0, 37, 74, 74])
    arguments["token_index"] = torch.cat([torch.arange(37), torch.arange(1, 38) % 37])
    arguments["weights"] = torch.ones(74, requires_grad=True)
    with torch.no_grad():
        arguments["x_TD"] = torch.cat([arguments["x_TD"], torch.full((1, 12), float("nan"))]).requires_grad_()
        arguments["token_index"][37] = 37  # the first row of expert 1 is NaN
    actual = y_and_gradients(arguments, "cpu")
    assert padded(37) == 38
    assert actual["up_proj"][0].isfinite().all()
    assert actual["down_proj"][0].isfinite().all()
    assert actual["up_proj"][1].isnan().any()


def test_every_entry_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(shape: Any, dtype: torch.dtype) -> Tensor:
        return torch.full(tuple(shape), float("nan"), dtype=dtype)

    arguments = make(bias=True)
    expected = y_and_gradients(arguments, "cpu")
    monkeypatch.setattr(_expert_forward, "empty", poisoned)
    monkeypatch.setattr(_expert_backward, "empty", poisoned)
    monkeypatch.setattr(_memory, "empty", poisoned)
    actual = y_and_gradients(arguments, "cpu")
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name
    assert (actual["up_proj"][-1] == 0).all()  # the last expert has no tokens
    assert (actual["down_bias"][-1] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tokens_and_no_assignments(backend: str) -> None:
    for T in (0, 1):  # the only token goes nowhere
        actual = y_and_gradients(make(T=T, bias=True), backend)
        assert actual["y"].shape == (T, 12)
        for tensor in actual.values():
            assert (tensor == 0).all()
