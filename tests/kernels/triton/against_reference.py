"""A primitive on the triton backend against the float64 reference on the CPU: its outputs, and every gradient."""

from collections.abc import Callable

import torch
from torch import Tensor

from gatelab import kernels

# Some units in the last place of the result: float32 6e-8, bfloat16 8e-3 (the interpreter cuts off where a GPU rounds).
TOLERANCE = {torch.float64: 1e-13, torch.float32: 5e-6, torch.bfloat16: 1.6e-2}


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal numbers of any dtype, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def outputs_and_gradients(
    function: Callable[..., tuple[Tensor, ...] | Tensor], inputs: dict[str, Tensor | None], backend: str
) -> dict[str, Tensor]:
    """What `function(**inputs)` returns, and the gradients of its floating inputs for random ones of its outputs."""
    leaves = {
        name: value.detach().requires_grad_() if value is not None and value.is_floating_point() else value
        for name, value in inputs.items()
    }
    with kernels.use(backend):
        outputs = function(**leaves)
    outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    results = {f"output {i}": output.detach() for i, output in enumerate(outputs)}
    wanted = {name: leaf for name, leaf in leaves.items() if leaf is not None and leaf.requires_grad}
    differentiable = [output for output in outputs if output.requires_grad]
    grads = [randn(*o.shape, dtype=o.dtype, seed=i).to(o.device) for i, o in enumerate(differentiable)]
    if differentiable:
        found = torch.autograd.grad(differentiable, list(wanted.values()), grads)
        results |= {f"gradient of {name}": grad for name, grad in zip(wanted, found, strict=True)}
    return results


def assert_agrees(function: Callable[..., tuple[Tensor, ...] | Tensor], tolerance: float = 0, **inputs: Tensor | None):
    """Integers alike; floats within the tolerance of their dtype (or a larger one) of the largest of them."""
    actual = {name: r.cpu() for name, r in outputs_and_gradients(function, inputs, "triton").items()}
    doubles = {name: None if v is None else v.cpu() for name, v in inputs.items()}
    doubles = {name: v.double() if v is not None and v.is_floating_point() else v for name, v in doubles.items()}
    expected = outputs_and_gradients(function, doubles, "reference")
    assert actual.keys() == expected.keys()
    for name, result in actual.items():
        oracle = expected[name]
        if not result.is_floating_point():
            assert torch.equal(result, oracle), name
            continue
        assert result.isfinite().equal(oracle.isfinite()), name
        finite = oracle.isfinite()
        assert torch.equal(result[~finite].double(), oracle[~finite]), name
        result, oracle = result[finite], oracle[finite]
        largest = float(oracle.abs().max()) if oracle.numel() else 0.0
        atol = max(tolerance, TOLERANCE[result.dtype]) * largest
        torch.testing.assert_close(result.double(), oracle, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def dtypes_of_results(function: Callable, inputs: dict[str, Tensor | None], backend: str) -> dict[str, torch.dtype]:
    """By name, as `outputs_and_gradients`."""
    return {name: result.dtype for name, result in outputs_and_gradients(function, inputs, backend).items()}
