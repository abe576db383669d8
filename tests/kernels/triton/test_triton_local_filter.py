"""`local_filter` in Triton's interpreter: outputs, history, and the gradient of everything that has one."""

import pytest
import torch
from against_reference import assert_agrees, dtypes_of_results, outputs_and_gradients, randn

from gatelab import kernels

PARAMETERS = ("first", "first_bias", "second", "second_bias", "norm_weight")


def make(B=2, S=9, D=6, H=3, dtype=torch.float32, history=False):
    shapes = [(B, S, D), (2, H, D), (H,), (2, D, H), (D,), (D,)]
    names = ("x_BSD", *PARAMETERS)
    inputs = {n: randn(*shape, dtype=dtype, seed=i) for i, (n, shape) in enumerate(zip(names, shapes, strict=True))}
    if history:
        inputs |= {"x_before": randn(B, D, dtype=dtype, seed=8), "o1_before": randn(B, H, dtype=dtype, seed=9)}
    return inputs


def filtered(token_mask=None):
    """The primitive with flat inputs and outputs."""

    def run(x_before=None, o1_before=None, **inputs):
        history = None if x_before is None else (x_before, o1_before)
        y, (x_last, o1_last) = kernels.local_filter(**inputs, token_mask=token_mask, history=history)
        return y, x_last, o1_last

    return run


def test_worked_example():
    # D = H = 1, B0 = 2, B1 = 1, b1 = 1, C0 = 1, C1 = 3, b2 = -1, x = [1, 2]:
    # o1 = [1 + 1, 2·1 + 2 + 1] = [2, 5], o2 = [3·2 − 1, 2 + 3·5 − 1] = [5, 16], r = [6, 18]; a norm of one number is
    # its sign, times the weight 0.5.
    x = torch.tensor([[[1.0], [2.0]]])
    first, second = torch.tensor([[[2.0]], [[1.0]]]), torch.tensor([[[1.0]], [[3.0]]])
    bias, weight = torch.tensor([1.0]), torch.tensor([0.5])
    with kernels.use("triton"):
        y, (x_last, o1_last) = kernels.local_filter(x, first, bias, second, -bias, weight)
    torch.testing.assert_close(y, torch.tensor([[[0.5], [0.5]]]))
    assert (x_last.tolist(), o1_last.tolist()) == ([[2.0]], [[5.0]])


@pytest.mark.parametrize("history", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [(1, 1, 2, 1), (3, 1, 5, 2), (2, 17, 20, 7)], ids=str)
def test_sizes(size, masked, history):
    B, S, _, _ = size
    mask = torch.rand(B, S, generator=torch.Generator().manual_seed(0)) < 0.6 if masked else None
    assert_agrees(filtered(mask), **make(*size, history=history))


def test_600_tokens():
    assert_agrees(filtered(), **make(2, 300, 8, 4))


@pytest.mark.parametrize(("B", "S"), [(2, 0), (0, 3)])
def test_no_token(B, S):
    assert_agrees(filtered(), **make(B, S))
    assert_agrees(filtered(), **make(B, S, history=True))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.04), (torch.float64, 1e-9)], ids=str)
def test_dtypes(dtype, tolerance):
    # bfloat16: several roundings follow each other. float64: eps is handed to a kernel in float32.
    assert_agrees(filtered(), tolerance=tolerance, **make(2, 17, 12, 5, dtype, history=True))


def test_dtypes_of_results_are_those_of_the_reference():
    for norm_dtype in (torch.float32, torch.bfloat16):
        inputs = make(dtype=torch.bfloat16, history=True)
        inputs["norm_weight"] = inputs["norm_weight"].to(norm_dtype)
        assert dtypes_of_results(filtered(), inputs, "triton") == dtypes_of_results(filtered(), inputs, "reference")


def test_masked_tokens_may_hold_anything():
    mask = torch.tensor([[False, False, True, True, True], [True, True, False, True, False]])
    inputs = make(2, 5)
    inputs["x_BSD"][~mask] = torch.nan
    results = outputs_and_gradients(filtered(mask), inputs, "triton")
    assert all(bool(result.isfinite().all()) for result in results.values())
    assert bool((results["gradient of x_BSD"][~mask] == 0).all())


def test_strided_inputs():
    inputs = make(2, 9, 6, 3)
    inputs["x_BSD"] = randn(9, 6, 2, seed=5).permute(2, 0, 1)
    inputs["first"] = randn(2, 6, 3, seed=6).transpose(1, 2)
    inputs["norm_weight"] = inputs["norm_weight"][:1].expand(6)
    assert_agrees(filtered(torch.ones(9, 2, dtype=torch.bool).t()), **inputs)


def test_a_sequence_in_two_parts_is_the_sequence():
    inputs = make(2, 9)
    x = inputs.pop("x_BSD")
    with kernels.use("triton"):
        whole, last = kernels.local_filter(x, **inputs)
        start, history = kernels.local_filter(x[:, :4], **inputs)
        end, other = kernels.local_filter(x[:, 4:], **inputs, history=history)
    torch.testing.assert_close(torch.cat([start, end], 1), whole)
    torch.testing.assert_close(other, last)


def test_autocast():
    inputs = make(2, 9, history=True)
    with torch.autocast("cpu", torch.bfloat16):
        actual = outputs_and_gradients(filtered(), inputs, "triton")
        expected = outputs_and_gradients(filtered(), inputs, "reference")
    for name, result in actual.items():
        assert result.dtype == expected[name].dtype, name
        # products in bfloat16, as in the reference, added in another order: some 2⁻⁸ of the largest
        atol = 0.02 * float(expected[name].abs().max())
        torch.testing.assert_close(result, expected[name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def test_gradients_numerically():
    inputs = make(1, 3, 3, 2, torch.float64, history=True)
    names, tensors = list(inputs), [tensor.requires_grad_() for tensor in inputs.values()]
    with kernels.use("triton"):
        run = filtered(torch.tensor([[True, False, True]]))
        assert torch.autograd.gradcheck(lambda *args: run(**dict(zip(names, args, strict=True))), tensors)


def test_compiles_without_a_graph_break():
    torch._dynamo.reset()
    inputs = {name: tensor.requires_grad_() for name, tensor in make(2, 5, history=True).items()}
    with kernels.use("triton"):
        compiled = torch.compile(filtered(torch.ones(2, 5, dtype=torch.bool)), fullgraph=True, backend="aot_eager")
        outputs = [compiled(**inputs), filtered()(**inputs)]
    gradients = [torch.autograd.grad(y.square().sum(), list(inputs.values())) for y, *_ in outputs]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_no_second_derivative():
    inputs = {name: tensor.requires_grad_() for name, tensor in make(1, 3).items()}
    with kernels.use("triton"):
        y = filtered()(**inputs)[0]
    gradient = torch.autograd.grad(y.square().sum(), inputs["x_BSD"], create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="local_filter has no second derivative"):
        gradient.sum().backward()
