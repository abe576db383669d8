"""SwiGLU at the sizes that the numba kernels take, multiples of 32: with them, and with torch alone."""

from typing import Any

import pytest
import torch
from expert_mlp_cases import TOLERANCE, assert_equal, make, y_and_gradients
from llvmlite.binding import get_host_cpu_features
from torch import Tensor

from gatelab import kernels
from gatelab.kernels.cpu import _expert_backward, _expert_forward, _fused, _memory

SIZES = [  # T, D, I, E, K
    (3, 32, 32, 4, 1),  # one row per expert or none
    (90, 96, 32, 6, 2),  # a panel and a half of the rows that are multiplied at once, D the larger
    (37, 32, 160, 3, 2),  # I the larger
    (1600, 64, 32, 3, 1),  # several blocks per expert
]


def case(sizes: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    return make(*sizes, dtype=dtype)


@pytest.fixture(params=["best", "vectors", "torch"])
def fused(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels as chosen here, those for vectors where there are tiles or another maker's, or none."""
    if request.param == "torch":
        monkeypatch.setattr(_fused, "_numba", lambda name: None)
    if request.param == "vectors":
        features = get_host_cpu_features()
        floats, halves = features.get("avx512f"), features.get("avx512bf16")
        found = {torch.float32: "_float" if floats else None, torch.bfloat16: "_bfloat16" if halves else None}
        monkeypatch.setattr(_fused, "instructions_for", found.get)


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", SIZES)
def test_equal_to_float64(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    arguments = case(sizes, dtype)
    exact = {
        n: t.detach().double().requires_grad_(t.requires_grad) if t is not None and t.is_floating_point() else t
        for n, t in arguments.items()
    }
    expected = y_and_gradients(exact, "reference")
    actual = {n: t.double() for n, t in y_and_gradients(arguments, "cpu").items()}
    assert_equal(actual, expected, TOLERANCE[dtype])


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_entry_is_written(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(shape: Any, dtype: torch.dtype) -> Tensor:
        return torch.full(tuple(shape), float("nan"), dtype=dtype)

    arguments = case((90, 96, 32, 6, 2), dtype)
    expected = y_and_gradients(arguments, "cpu")
    for module in (_expert_forward, _expert_backward, _fused, _memory):
        monkeypatch.setattr(module, "empty", poisoned)
    actual = y_and_gradients(arguments, "cpu")
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


@pytest.mark.usefixtures("fused")
def test_a_row_does_not_depend_on_those_beside_it() -> None:
    arguments = case((90, 96, 32, 6, 2))
    expected = y_and_gradients(arguments, "cpu")["y"]
    with torch.no_grad():
        arguments["x_TD"][7] = float("nan")
    actual = y_and_gradients(arguments, "cpu")["y"]
    others = torch.arange(90) != 7
    assert actual[7].isnan().all()
    assert torch.equal(actual[others], expected[others])


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_stay_on_the_cpu(dtype: torch.dtype) -> None:
    arguments = case((90, 96, 32, 6, 2), dtype)
    with torch.no_grad():
        expected = kernels.expert_mlp(**arguments)
        with torch.device("meta"):  # where new tensors go that do not say where
            actual = kernels.expert_mlp(**arguments)
    assert torch.equal(actual, expected)


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_gates(dtype: torch.dtype) -> None:
    # gate and up projection are the identity: y = silu(x)·x, which is x² for large x and 0 for large negative x, where
    # the exponential leaves the range of float32; its slope is 2x and 0, and 0 in 0
    x = torch.tensor([1e3, -1e3, 90.0, -90.0, 300.0, 0.0]).to(dtype)
    eye = torch.eye(32, dtype=dtype)
    arguments = {
        "x_TD": x[:, None].repeat(1, 32).requires_grad_(),
        "token_index": torch.arange(6),
        "expert_offsets": torch.tensor([0, 6]),
        "weights": torch.ones(6),
        "up_proj": torch.cat([eye, eye])[None].contiguous(),
        "down_proj": eye[None].contiguous(),
    }
    y = kernels.expert_mlp(**arguments)
    y.sum().backward()
    positive = x.double().clamp(min=0)
    rounding = {torch.float32: 2**-22, torch.bfloat16: 2**-7}[dtype]
    for actual, expected in ((y.detach(), positive.square()), (arguments["x_TD"].grad, 2 * positive)):
        torch.testing.assert_close(actual.double(), expected[:, None].expand(6, 32), rtol=rounding, atol=1e-30)
