"""The compiled kernels on a GPU, at sizes that fill it, against the float64 reference on the CPU.

Run with `TRITON_INTERPRET=0 pytest -m gpu tests/kernels/triton`.
"""

import pytest
import torch
from against_reference import assert_agrees, outputs_and_gradients, randn

import gatelab.kernels.triton
from gatelab import kernels

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
DTYPES = [torch.float32, torch.bfloat16]
T = 20_001


@pytest.fixture(autouse=True)
def compiled():
    assert DEVICE == "cpu" or not gatelab.kernels.triton.INTERPRETED, "run with TRITON_INTERPRET=0"


def topk_gate(logits_TE):
    """DeepSeek-V3's, but for the selection on logits, which here are so round that all sums of two are exact."""
    bias = torch.arange(60, device=logits_TE.device) % 5 / 8
    options = {"activation": "sigmoid", "num_groups": 6, "keep_groups": 3, "groups_by": "two-best"}
    return kernels.topk_gate(logits_TE, 4, select_on="logits", bias=bias, renormalize=True, scale=2.5, **options)


def round_logits(dtype=torch.float32):
    return ((16 * randn(T, 60)).round() / 16).to(DEVICE, dtype)


def plan(scores):
    """Sinkhorn's has no gradient."""
    return kernels.sinkhorn(scores.detach(), iterations=8)


def filtered(x_before=None, o1_before=None, **inputs):
    """`local_filter` with flat inputs and outputs."""
    y, (x_last, o1_last) = kernels.local_filter(**inputs, history=(x_before, o1_before))
    return y, x_last, o1_last


def filter_inputs(S, D, H, dtype):
    shapes = {
        "x_BSD": (3, S, D),
        "first": (2, H, D),
        "first_bias": (H,),
        "second": (2, D, H),
        "second_bias": (D,),
        "norm_weight": (D,),
        "x_before": (3, D),
        "o1_before": (3, H),
    }
    scale = {"first": (2 * D) ** -0.5, "second": (2 * H) ** -0.5}
    return {n: (scale.get(n, 1) * randn(*s, seed=len(n))).to(DEVICE, dtype) for n, s in shapes.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_topk_gate(dtype):
    assert_agrees(topk_gate, logits_TE=round_logits(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_gate(dtype):
    assert_agrees(kernels.attention_gate, **{f"{n}_TE": randn(T // 10, 60, dtype=dtype).to(DEVICE) for n in "qkv"})


def test_sinkhorn():
    assert_agrees(plan, tolerance=1e-5, scores=randn(T, 60).to(DEVICE))


def test_group_by_expert():
    ids = torch.randint(-1, 60, (T, 4), generator=torch.Generator().manual_seed(0))
    with kernels.use("triton"):
        actual = kernels.group_by_expert(ids.to(DEVICE), 60)
    for a, b in zip(actual, kernels.group_by_expert(ids, 60), strict=True):
        assert torch.equal(a.cpu(), b)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.04)], ids=str)
def test_local_filter(dtype, tolerance):
    assert not torch.backends.cuda.matmul.allow_tf32
    assert_agrees(filtered, tolerance=tolerance, **filter_inputs(T // 20, 300, 150, dtype))


def test_the_same_bits_every_time():
    logits = round_logits()
    first, second = (outputs_and_gradients(topk_gate, {"logits_TE": logits}, "triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(plan(logits), plan(logits))
    inputs = filter_inputs(T // 20, 300, 150, torch.float32)
    first, second = (outputs_and_gradients(filtered, inputs, "triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
