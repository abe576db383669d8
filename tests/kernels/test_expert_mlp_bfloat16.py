"""SwiGLU in bfloat16 at the sizes that the fused kernel takes where the processor has it: multiples of 32."""

from typing import Any

import pytest
import torch
from expert_mlp_cases import TOLERANCE, assert_equal, make, y_and_gradients
from torch import Tensor

from gatelab.kernels.cpu import _expert_backward, _expert_forward, _fused, _memory

SIZES = [  # T, D, I, E, K
    (3, 32, 32, 4, 1),  # one row per expert or none
    (90, 96, 32, 6, 2),  # a panel and a half of the rows that are multiplied at once, D the larger
    (37, 32, 160, 3, 2),  # I the larger
    (1600, 64, 32, 3, 1),  # several blocks per expert
]


def case(sizes: tuple[int, ...]) -> dict[str, Any]:
    return make(*sizes, dtype=torch.bfloat16)


@pytest.fixture(params=[True, False], ids=["fused", "torch"])
def fused(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(_fused, "_numba", lambda name: None)


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("sizes", SIZES)
def test_equal_to_float64(sizes: tuple[int, ...]) -> None:
    arguments = case(sizes)
    exact = {
        n: t.detach().double().requires_grad_(t.requires_grad) if t is not None and t.is_floating_point() else t
        for n, t in arguments.items()
    }
    expected = y_and_gradients(exact, "reference")
    actual = {n: t.double() for n, t in y_and_gradients(arguments, "cpu").items()}
    assert_equal(actual, expected, TOLERANCE[torch.bfloat16])


@pytest.mark.usefixtures("fused")
def test_every_entry_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(shape: Any, dtype: torch.dtype) -> Tensor:
        return torch.full(tuple(shape), float("nan"), dtype=dtype)

    arguments = case((90, 96, 32, 6, 2))
    expected = y_and_gradients(arguments, "cpu")
    for module in (_expert_forward, _expert_backward, _fused, _memory):
        monkeypatch.setattr(module, "empty", poisoned)
    actual = y_and_gradients(arguments, "cpu")
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


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
def test_large_gates() -> None:
    # silu(g) is g, 0 and −0 where its exponential leaves the range of float32; gate and up projection are the identity
    arguments = case((6, 32, 32, 2, 1))
    arguments["expert_offsets"] = torch.tensor([0, 6, 6])
    arguments["token_index"], arguments["weights"] = torch.arange(6), torch.ones(6)
    values = torch.tensor([1e3, -1e3, 90.0, -90.0, 300.0, 0.0])
    eye = torch.eye(32)
    arguments["x_TD"] = values[:, None].expand(6, 32).bfloat16()
    arguments["up_proj"] = torch.cat([eye, eye]).expand(2, 64, 32).bfloat16().contiguous()
    arguments["down_proj"] = eye.expand(2, 32, 32).bfloat16().contiguous().requires_grad_()
    y = y_and_gradients(arguments, "cpu")["y"]
    expected = torch.where(values > 0, values.bfloat16().double().square(), 0.0)  # silu(g)·u = g·u = g²
    torch.testing.assert_close(y.double(), expected[:, None].expand(6, 32), rtol=2**-7, atol=1e-30)
