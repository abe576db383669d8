"""Arguments of `expert_mlp`, and how results are compared.

Axes: T tokens, D hidden size, E experts, K experts per token, I intermediate size, J features out of `up_proj`.
"""

from typing import Any

import torch
from torch import Tensor

from gatelab import kernels
from gatelab.kernels.activations import ACTIVATIONS

BACKENDS = ("reference", "cpu")
ARGUMENTS = ("x_TD", "token_index", "expert_offsets", "weights", "up_proj", "down_proj", "up_bias", "down_bias")
DIFFERENTIABLE = ("x_TD", "weights", "up_proj", "down_proj", "up_bias", "down_bias")


def make(
    T: int = 37,
    D: int = 12,
    I: int = 7,
    E: int = 6,
    K: int = 3,
    dtype: torch.dtype = torch.float32,
    activation: str = "swiglu",
    bias: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Random arguments; token 0 goes nowhere (so there is a tail), the last expert gets nothing."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * shape[-1] ** -0.5).to(dtype)

    J = 2 * I if ACTIVATIONS[activation].gated else I
    ids = torch.rand(T, E - 1, generator=generator).topk(K).indices
    ids[:1] = -1
    order, offsets = kernels.group_by_expert(ids, E)
    weights = torch.rand(T * K, generator=generator, dtype=torch.promote_types(dtype, torch.float32))
    arguments: dict[str, Any] = {
        "x_TD": normal(T, D) * D**0.5,
        "token_index": order // K,
        "expert_offsets": offsets,
        "weights": weights,
        "up_proj": normal(E, J, D),
        "down_proj": normal(E, D, I),
        "up_bias": normal(E, J) if bias else None,
        "down_bias": normal(E, D) if bias else None,
    }
    for name in DIFFERENTIABLE:
        if arguments[name] is not None:
            arguments[name].requires_grad_()
    return arguments


def y_and_gradients(arguments: dict[str, Any], backend: str, **options: Any) -> dict[str, Tensor]:
    """y and, by name, the gradient of everything that has one, for one fixed gradient of y."""
    with kernels.use(backend):
        y = kernels.expert_mlp(**arguments, **options)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    names = [name for name in DIFFERENTIABLE if arguments[name] is not None and arguments[name].requires_grad]
    return {"y": y.detach()} | dict(
        zip(names, torch.autograd.grad(y, [arguments[n] for n in names], grad), strict=True)
    )


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Every tensor within `tolerance` of the other's largest entry."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        scale = float(tensor.double().abs().max()) if tensor.numel() else 0.0
        torch.testing.assert_close(
            actual[name].double(), tensor.double(), rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


# Rounding of the accumulation, in units of the last place of each type: float32 6e-8, bfloat16 4e-3
TOLERANCE = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 2e-2}
