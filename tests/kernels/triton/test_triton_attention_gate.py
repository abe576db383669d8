"""`attention_gate` in Triton's interpreter: outputs and the gradients of q, k and v."""

import pytest
import torch
from against_reference import assert_agrees, randn
from torch.utils.flop_counter import FlopCounterMode

from gatelab import kernels


def make(T, E, dtype=torch.float32, scale=1.0):
    return {f"{name}_TE": scale * randn(T, E, dtype=dtype, seed=i) for i, name in enumerate("qkv")}


def test_worked_example():
    # Token 0: q = [0, ln 2], k = [0, 1], v = [1, 4]. Row 0 is uniform: (1 + 4)/2 = 2.5. Row 1 has exp(q k) = [1, 2]:
    # (1·1 + 2·4)/3 = 3.
    q, k, v = torch.tensor([[0.0, 2**0.5]]).square().log1p() * 0, torch.tensor([[0.0, 1]]), torch.tensor([[1.0, 4]])
    q[0, 1] = torch.log(torch.tensor(2.0))
    with kernels.use("triton"):
        torch.testing.assert_close(kernels.attention_gate(q, k, v), torch.tensor([[2.5, 3.0]]))


# E = 130: several blocks of rows, the last one not full
@pytest.mark.parametrize(("T", "E"), [(0, 3), (1, 1), (17, 5), (3, 60), (2, 130), (600, 3)])
def test_sizes(T, E):
    assert_agrees(kernels.attention_gate, **make(T, E))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_dtypes(dtype):
    assert_agrees(kernels.attention_gate, **make(17, 5, dtype))


@pytest.mark.parametrize("scale", [30.0, 1e3])
def test_large_products_do_not_overflow(scale):
    # q·k reaches 1e3 and 1e6, whose rounding alone moves an exponent by 1e-4 and 0.1: in float64, where it does not.
    assert_agrees(kernels.attention_gate, tolerance=1e-8, **make(7, 6, torch.float64, scale))


def test_strided_inputs():
    inputs = make(17, 10)
    inputs["q_TE"], inputs["k_TE"] = inputs["q_TE"][:, ::2], randn(5, 17, seed=4).t()
    inputs["v_TE"] = inputs["v_TE"][:1, :5].expand(17, 5)
    assert_agrees(kernels.attention_gate, **inputs)


def test_gradients_numerically():
    inputs = [tensor.requires_grad_() for tensor in make(2, 3, torch.float64).values()]
    with kernels.use("triton"):
        assert torch.autograd.gradcheck(kernels.attention_gate, inputs)


def test_compiles_without_a_graph_break():
    torch._dynamo.reset()
    inputs = [tensor.requires_grad_() for tensor in make(3, 4).values()]
    with kernels.use("triton"):
        compiled = torch.compile(kernels.attention_gate, fullgraph=True, backend="aot_eager")
        outputs = [compiled(*inputs), kernels.attention_gate(*inputs)]
    gradients = [torch.autograd.grad(z[:, 0].sum(), inputs) for z in outputs]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_flops_are_counted_as_in_the_reference():
    inputs = [tensor.requires_grad_() for tensor in make(3, 4).values()]
    counts = []
    for backend in ("triton", "reference"):
        with kernels.use(backend), FlopCounterMode(display=False) as counter:
            z = kernels.attention_gate(*inputs)
            forward = counter.get_total_flops()
            z.sum().backward()
            counts.append((forward, counter.get_total_flops()))
    # 4·3·4² = 192 forward, twice that backward
    assert counts == [(192, 3 * 192), (192, 3 * 192)]


def test_no_second_derivative():
    inputs = [tensor.requires_grad_() for tensor in make(3, 4).values()]
    with kernels.use("triton"):
        z = kernels.attention_gate(*inputs)
    gradients = torch.autograd.grad(z.sum(), inputs, create_graph=True)
    with pytest.raises(NotImplementedError, match="attention_gate has no second derivative"):
        gradients[0].sum().backward()
