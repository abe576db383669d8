"""`expert_mlp` on a GPU, compiled and tuned, against the float64 reference; run by `make gpu-check`."""

import pytest
import torch
from against_reference import TOLERANCE, assert_agrees, outputs_and_gradients
from test_expert_mlp_triton import INTEGERS, make, mlp
from torch import Tensor

from gatelab import kernels
from gatelab.kernels.activations import ACTIVATIONS

pytestmark = pytest.mark.gpu
SIZES = [(1, 40, 24, 4, 2), (17, 33, 20, 5, 5), (600, 72, 48, 19, 2), (2000, 512, 384, 16, 4), (3000, 264, 200, 3, 1)]


def on_gpu(tensors: dict[str, Tensor | None], dtype: torch.dtype = torch.float32) -> dict[str, Tensor | None]:
    """Parameters and tokens in `dtype`; weights stay float32."""
    kept = (*INTEGERS, "weights")
    return {n: t if t is None else t.cuda() if n in kept else t.to("cuda", dtype) for n, t in tensors.items()}


def assert_near(tensors: dict[str, Tensor | None], **options) -> None:
    """As exact as bfloat16 can be: a few roundings, by the norm."""
    exact = {n: t if t is None or n in INTEGERS else t.double() for n, t in tensors.items()}
    expected = outputs_and_gradients(mlp(**options), exact, "reference")
    for name, result in outputs_and_gradients(mlp(**options), tensors, "triton").items():
        norm = expected[name].norm()
        assert (result.double() - expected[name]).norm() <= 4 * 2**-9 * norm, name


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_float32(size):
    assert_agrees(mlp(), tolerance=2 * TOLERANCE[torch.float32], **on_gpu(make(*size, bias=True)))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_bfloat16(size):
    assert_near(on_gpu(make(*size, bias=True), torch.bfloat16))


@pytest.mark.parametrize("on_input", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation, on_input):
    tensors = make(300, 136, 80, 4, 2, gated=bool(ACTIVATIONS[activation].gated), bias=True)
    # relu has two slopes at 0, and bfloat16 another side of it than float64 now and then
    dtype = torch.float32 if activation.startswith("relu") else torch.bfloat16
    assert_near(on_gpu(tensors, dtype), activation=activation, weights_on_input=on_input)


@pytest.mark.parametrize("T", [0, 1])
def test_nothing_to_do(T):
    results = outputs_and_gradients(mlp(), on_gpu(make(T=T, bias=True), torch.bfloat16), "triton")
    assert all((result == 0).all() for result in results.values())


def test_any_strides():
    tensors = on_gpu(make(300, 136, 80, 4, 2, bias=True), torch.bfloat16)
    strided = {n: torch.stack([t, t], -1)[..., 0] for n, t in tensors.items()}
    strided["up_proj"] = tensors["up_proj"].transpose(1, 2).contiguous().transpose(1, 2)
    assert_near(strided)


def test_the_same_bits_every_time():
    tensors = on_gpu(make(2000, 512, 384, 16, 4, bias=True), torch.bfloat16)
    first, second = (outputs_and_gradients(mlp(), tensors, "triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_tail_may_hold_anything():
    tensors = on_gpu(make(600, 136, 80, 6, 2), torch.bfloat16)
    expected = outputs_and_gradients(mlp(), tensors, "triton")
    N = int(tensors["expert_offsets"][-1])
    tensors["token_index"][N:] = 10**9
    tensors["weights"][N:] = torch.inf
    actual = outputs_and_gradients(mlp(), tensors, "triton")
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_nothing_waits_for_the_gpu():
    tensors = on_gpu(make(600, 136, 80, 6, 2), torch.bfloat16)
    tensors = {n: t if t is None or n in INTEGERS else t.requires_grad_() for n, t in tensors.items()}
    with kernels.use("triton"):
        kernels.expert_mlp(**tensors).sum().backward()  # tunes, which waits
        torch.cuda.set_sync_debug_mode("error")
        try:
            kernels.expert_mlp(**tensors).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_compiles_without_a_graph_break():
    tensors = on_gpu(make(600, 136, 80, 6, 2), torch.bfloat16)
    expected = outputs_and_gradients(mlp(), tensors, "triton")
    compiled = torch.compile(kernels.expert_mlp, fullgraph=True)
    actual = outputs_and_gradients(lambda **t: compiled(**t), tensors, "triton")
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
