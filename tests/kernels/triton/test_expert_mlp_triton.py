"""`expert_mlp` in Triton's interpreter: outputs and every gradient against the float64 reference.

Axes: T tokens, D hidden size, E experts, K experts per token, I intermediate size, J features out of `up_proj`.
"""

from typing import Any

import pytest
import torch
from against_reference import assert_agrees, outputs_and_gradients, randn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gatelab import kernels
from gatelab.kernels.activations import ACTIVATIONS
from gatelab.kernels.triton import (
    _expert_configs,
    _expert_hidden,
    _expert_tiles,
    _expert_up,
    _expert_weights,
    _grouped_gemm,
)
from gatelab.kernels.triton import expert_mlp as module

INTEGERS = ("token_index", "expert_offsets")


def make(
    T: int = 19,
    D: int = 34,
    I: int = 20,
    E: int = 5,
    K: int = 2,
    dtype: torch.dtype = torch.float32,
    gated: bool = True,
    bias: bool = False,
) -> dict[str, Tensor | None]:
    """Random arguments; token 0 goes nowhere, so there is a tail; unless K is E, the last expert gets nothing."""
    J = 2 * I if gated else I
    ids = torch.rand(T, max(E - 1, K), generator=torch.Generator().manual_seed(0)).topk(K).indices
    ids[:1] = -1
    order, offsets = kernels.group_by_expert(ids, E)
    weights = randn(T * K, seed=1).abs()
    weights[int(offsets[-1]) :] = torch.nan
    return {
        "x_TD": randn(T, D, dtype=dtype, seed=2),
        "token_index": order // K,
        "expert_offsets": offsets,
        "weights": weights,
        "up_proj": (randn(E, J, D, seed=3) * D**-0.5).to(dtype),
        "down_proj": (randn(E, D, I, seed=4) * I**-0.5).to(dtype),
        "up_bias": (randn(E, J, seed=5) / 4).to(dtype) if bias else None,
        "down_bias": (randn(E, D, seed=6) / 4).to(dtype) if bias else None,
    }


def mlp(**options: Any):
    """`kernels.expert_mlp` with those options, as a function of its tensors."""

    def function(**tensors: Tensor | None) -> Tensor:
        return kernels.expert_mlp(**tensors, **options)

    return function


# BLOCK_M is 16, 32, 32, 32 and 128; the blocks of the interpreter are 32 and 16 wide
@pytest.mark.parametrize(
    ("T", "D", "I", "E", "K"),
    [(1, 5, 3, 4, 2), (17, 33, 20, 5, 5), (37, 40, 36, 6, 3), (600, 9, 7, 19, 1), (90, 8, 5, 1, 1)],
)
def test_sizes(T, D, I, E, K):
    assert_agrees(mlp(), **make(T, D, I, E, K))


@pytest.mark.parametrize("on_input", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation, on_input):
    # bias where the weights act on the output and where they act on the input, for half the activations each
    bias = on_input == (len(activation) % 2 == 0)
    tensors = make(11, 20, 17, 4, 2, gated=bool(ACTIVATIONS[activation].gated), bias=bias)
    assert_agrees(mlp(activation=activation, weights_on_input=on_input), **tensors)


@pytest.mark.parametrize("on_input", [False, True])
@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_biases(activation, on_input):
    tensors = make(23, 18, 20, 4, 2, gated=activation == "swiglu", bias=True)
    assert_agrees(mlp(activation=activation, weights_on_input=on_input), **tensors)


@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2**-9), (torch.float16, 2**-12)], ids=str)
@pytest.mark.parametrize("on_input", [False, True])
def test_half_precision(dtype, unit, on_input):
    tensors = make(dtype=dtype, bias=True)
    function = mlp(weights_on_input=on_input)
    exact = {n: t if n in INTEGERS else t.double() for n, t in tensors.items()}
    expected = outputs_and_gradients(function, exact, "reference")
    for name, result in outputs_and_gradients(function, tensors, "triton").items():
        assert result.dtype == (torch.float32 if name == "gradient of weights" else dtype)
        error = (result.double() - expected[name]).norm() / expected[name].norm()
        assert error < 4 * unit, name  # a few roundings of up to one unit each


@pytest.mark.parametrize("on_input", [False, True])
def test_worked_example(on_input):
    # D = I = 1, squared ReLU, so expert e maps x to down_e · relu(up_e · x)². Token 0 = 2, token 1 = 3.
    x = torch.tensor([[2.0], [3.0]])
    up, down = torch.tensor([[[1.0]], [[-1.0]], [[2.0]]]), torch.tensor([[[1.0]], [[5.0]], [[0.5]]])
    # expert 0: token 0 with weight 0.5 · expert 1: token 0 with weight 1 · expert 2: tokens 0, 1 with 0.25, 2
    tokens, offsets = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 2, 4])
    weights = torch.tensor([0.5, 1.0, 0.25, 2.0])
    with kernels.use("triton"):
        y = kernels.expert_mlp(x, tokens, offsets, weights, up, down, activation="relu2", weights_on_input=on_input)
    # on the input: 1·1² = 1 · 5·relu(−2)² = 0 · 0.5·(2·0.5)² = 0.5, and 0.5·(2·6)² = 72
    # on the output: 0.5·1·2² = 2 · 5·relu(−2)² = 0 · 2 = 0.25·0.5·4², and 36 = 2·0.5·6²
    assert y.tolist() == ([[1.5], [72.0]] if on_input else [[4.0], [36.0]])


def test_adds_up_in_ascending_order_of_expert_in_float32():
    # one token, three experts that return 2²⁵, 1, −2²⁵: in float32 (2²⁵ + 1) − 2²⁵ = 0, in any other order 1
    x = torch.ones(1, 1, dtype=torch.bfloat16)
    outputs = torch.tensor([2.0**25, 1, -(2.0**25)], dtype=torch.bfloat16).view(3, 1, 1)
    arguments = (x, torch.zeros(3).long(), torch.arange(4), torch.ones(3), torch.ones_like(outputs))
    with kernels.use("triton"):
        assert kernels.expert_mlp(*arguments, outputs, activation="relu").item() == 0
        swapped = outputs[[0, 2, 1]]
        assert kernels.expert_mlp(*arguments, swapped, activation="relu").item() == 1


@pytest.mark.parametrize("T", [0, 1])
def test_no_tokens_and_no_assignments(T):
    results = outputs_and_gradients(mlp(), make(T=T, bias=True), "triton")  # the only token goes nowhere
    for name, result in results.items():
        assert (result == 0).all(), name


@pytest.mark.parametrize("on_input", [False, True])
def test_the_tail_may_hold_anything(on_input):
    tensors = make(bias=True)
    N = int(tensors["expert_offsets"][-1])
    assert len(tensors["token_index"]) > N
    expected = outputs_and_gradients(mlp(weights_on_input=on_input), tensors, "triton")
    tensors["token_index"][N:] = 10**9
    tensors["weights"][N:] = torch.inf
    tensors["x_TD"][0] = torch.nan  # token 0 goes nowhere
    actual = outputs_and_gradients(mlp(weights_on_input=on_input), tensors, "triton")
    assert (actual["gradient of weights"][N:] == 0).all()
    for name, result in expected.items():
        assert torch.equal(actual[name], result), name


def test_a_nan_stays_with_its_token_and_its_experts():
    tensors = make(bias=True)
    tensors["x_TD"][5] = torch.nan
    own = tensors["token_index"] == 5
    experts = torch.searchsorted(tensors["expert_offsets"], own.nonzero().flatten(), right=True) - 1
    results = outputs_and_gradients(mlp(), tensors, "triton")
    assert results["output 0"].isnan().any(1).nonzero().flatten().tolist() == [5]
    assert results["gradient of x_TD"].isnan().any(1).nonzero().flatten().tolist() == [5]
    for name in ("up_proj", "up_bias", "down_proj"):
        touched = results[f"gradient of {name}"].flatten(1).isnan().any(1)
        assert touched.nonzero().flatten().tolist() == experts.tolist(), name


def test_a_nan_stays_with_its_expert():
    # D and I are no multiples of the blocks: what lies behind an expert's matrix is the next one's
    tensors = make(bias=True)
    expected = outputs_and_gradients(mlp(), tensors, "triton")
    tensors["up_proj"][1], tensors["down_proj"][1] = torch.nan, torch.nan
    results = outputs_and_gradients(mlp(), tensors, "triton")
    start, stop = tensors["expert_offsets"][1:3]
    touched = torch.zeros(len(tensors["x_TD"])).bool()
    touched[tensors["token_index"][start:stop]] = True
    assert 0 < touched.sum() < len(touched)
    for name in ("output 0", "gradient of x_TD"):
        assert torch.equal(results[name][~touched], expected[name][~touched]), name
        assert results[name][touched].isnan().all(), name
    others = [0, 2, 3, 4]
    for name in ("up_proj", "down_proj", "up_bias", "down_bias"):
        name = f"gradient of {name}"
        assert torch.equal(results[name][others], expected[name][others]), name


def test_an_expert_without_tokens_gets_zeros():
    tensors = make(bias=True)
    assert tensors["expert_offsets"][-2] == tensors["expert_offsets"][-1]
    results = outputs_and_gradients(mlp(), tensors, "triton")
    for name in ("up_proj", "down_proj", "up_bias", "down_bias"):
        assert (results[f"gradient of {name}"][-1] == 0).all(), name


def test_any_strides():
    tensors = make(bias=True)
    expected = outputs_and_gradients(mlp(), tensors, "triton")
    strided = {n: torch.stack([t, t], -1)[..., 0] for n, t in tensors.items()}
    strided["up_proj"] = tensors["up_proj"].transpose(1, 2).contiguous().transpose(1, 2)
    assert not any(t.is_contiguous() for t in strided.values())
    actual = outputs_and_gradients(mlp(), strided, "triton")
    for name, result in expected.items():
        assert torch.equal(actual[name], result), name
    x = tensors["x_TD"].clone().requires_grad_()
    with kernels.use("triton"):
        y = kernels.expert_mlp(**{**tensors, "x_TD": x})
    (by_ones,) = torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)
    (expanded,) = torch.autograd.grad(y.sum(), x)  # a gradient of stride 0
    assert torch.equal(by_ones, expanded)


def test_deterministic():
    tensors = make(T=70, D=9, I=7)
    first, second = (outputs_and_gradients(mlp(), tensors, "triton") for _ in range(2))
    for name, result in first.items():
        assert torch.equal(second[name], result), name


@pytest.mark.parametrize("wanted", [("x_TD",), ("weights",), ("up_proj",), ("x_TD", "weights"), ("down_bias",)])
@pytest.mark.parametrize("on_input", [False, True])
def test_only_the_wanted_gradients(wanted, on_input):
    tensors = make(T=9, D=18, I=7, bias=True)
    options = {"weights_on_input": on_input}
    expected = outputs_and_gradients(mlp(**options), tensors, "triton")
    leaves = {n: t.clone().requires_grad_() if n in wanted else t for n, t in tensors.items()}
    with kernels.use("triton"):
        y = kernels.expert_mlp(**leaves, **options)
    y.backward(randn(*y.shape))
    for name in wanted:
        assert torch.equal(leaves[name].grad, expected[f"gradient of {name}"]), name
    assert all(t.grad is None for n, t in leaves.items() if n not in wanted)


def test_what_it_keeps_for_the_backward_pass():
    T, D, I, E, K = 64, 24, 20, 8, 2
    tensors = make(T, D, I, E, K, dtype=torch.bfloat16)
    tensors = {n: t if n in INTEGERS or t is None else t.requires_grad_() for n, t in tensors.items()}
    arguments = {t.untyped_storage().data_ptr() for t in tensors.values() if t is not None}

    def kept_by(function) -> int:
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = function()
        del result
        return sum(size for pointer, size in kept.items() if pointer not in arguments)

    with kernels.use("triton"):
        ours = kept_by(lambda: kernels.expert_mlp(**tensors))
    # h in bfloat16: 2 · 128 · 40 = 10240; the order of 128 assignments and 65 offsets in int64: 8 · 193 = 1544
    assert ours == 2 * T * K * 2 * I + 8 * (T * K + T + 1) == 11784
    gate, up = (randn(K * I, D, dtype=torch.bfloat16).requires_grad_() for _ in range(2))
    down = randn(D, K * I, dtype=torch.bfloat16).requires_grad_()
    arguments |= {t.untyped_storage().data_ptr() for t in (gate, up, down)}
    linear, x = torch.nn.functional.linear, tensors["x_TD"]
    dense = kept_by(lambda: linear(torch.nn.functional.silu(linear(x, gate)) * linear(x, up), down))
    assert dense >= 2 * T * K * 3 * I
    assert ours <= dense + 16 * T * K
    with kernels.use("triton"), torch.no_grad():
        hidden = module._forward(*tensors.values(), "swiglu", False, False)[1]
    assert hidden.numel() == 0


def test_compiles_without_a_graph_break():
    tensors = make(T=9, D=18, I=7, bias=True)
    expected = outputs_and_gradients(mlp(), tensors, "triton")
    compiled = torch.compile(kernels.expert_mlp, fullgraph=True, backend="aot_eager")
    actual = outputs_and_gradients(lambda **t: compiled(**t), tensors, "triton")
    for name, result in expected.items():
        assert torch.equal(actual[name], result), name


def test_operators_keep_their_promises():
    arguments = make(T=9, D=18, I=7, bias=True)
    arguments["expert_offsets"][-1] = len(arguments["token_index"])  # no tail: opcheck compares what nobody writes
    arguments["weights"].nan_to_num_()
    tensors = [t.requires_grad_(t.is_floating_point()) for t in arguments.values()]
    ops = torch.ops.gatelab
    forward, backward = ops.expert_mlp_triton.default, ops.expert_mlp_triton_backward.default
    torch.library.opcheck(forward, (*tensors, "swiglu", False, True))
    tensors = [t.detach() for t in tensors]
    kept = forward(*tensors, "swiglu", False, True)[1:]
    wanted = (True, True, True)
    torch.library.opcheck(backward, (torch.ones_like(tensors[0]), *kept, *tensors, "swiglu", False, *wanted))


def test_second_derivative():
    tensors = make(T=5, D=3, I=2, E=3, K=2)
    x = tensors["x_TD"].requires_grad_()
    with kernels.use("triton"):
        y = kernels.expert_mlp(**tensors)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="reference"):
        grad.sum().backward()


def test_float64_and_callables_run_in_the_reference():
    tensors = make(T=9, D=6, I=5)
    twice = make(T=9, D=6, I=5, dtype=torch.float64)
    assert_agrees(mlp(), **twice)
    scale = torch.tensor(2.0, requires_grad=True)
    with kernels.use("triton"):
        y = kernels.expert_mlp(**tensors, activation=lambda h: ACTIVATIONS["swiglu"].function(h) * scale)
        torch.testing.assert_close(y, 2 * kernels.expert_mlp(**tensors))
    y.sum().backward()
    torch.testing.assert_close(scale.grad, y.detach().sum() / 2)  # y is linear in the scale


def test_autocast():
    tensors = make(T=9, D=18, I=7)
    low = {n: t if n in (*INTEGERS, "weights") or t is None else t.bfloat16() for n, t in tensors.items()}
    with kernels.use("triton"):
        with torch.autocast("cpu", torch.bfloat16):
            y = kernels.expert_mlp(**tensors)
        assert y.dtype == torch.float32
        assert torch.equal(y.bfloat16(), kernels.expert_mlp(**low))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 70), min_size=1, max_size=9), st.integers(0, 40))
def test_every_row_has_one_tile(counts, tail):
    offsets = torch.tensor([0, *counts]).cumsum(0)
    N = int(offsets[-1])
    tiles = _expert_tiles.tiles_of(offsets, N + tail)
    number = int(tiles.number)
    assert number <= tiles.most
    found = [
        (int(e), row)
        for e, first in zip(tiles.expert[:number], tiles.first_row[:number], strict=True)
        for row in range(int(first), min(int(first) + tiles.block_rows, int(offsets[int(e) + 1])))
    ]
    assert found == [(e, row) for e, n in enumerate(counts) for row in range(int(offsets[e]), int(offsets[e]) + n)]


def test_rows_of_a_tile():
    # 16 to 128, the mean number of rows per expert rounded up to a power of two
    sizes = [_expert_configs.block_rows(rows, 4) for rows in (0, 64, 68, 300, 512, 9999)]
    assert sizes == [16, 16, 32, 128, 128, 128]


@pytest.mark.parametrize("accumulators", [1, 2])
@pytest.mark.parametrize("which", range(3))
def test_the_blocks_of_the_gpu_compute_the_same(monkeypatch, which, accumulators):
    rows = (_expert_configs._HALF if accumulators == 1 else _expert_configs._HALF_TWICE)[which]
    weights = _expert_configs._HALF_WEIGHTS[which]
    for kernel in (_expert_up._up, _grouped_gemm._multiply_rows, _expert_hidden._hidden_gradient):
        monkeypatch.setattr(kernel, "configs", [rows])
    monkeypatch.setattr(_expert_weights._outer_products, "configs", [weights])
    assert_agrees(mlp(), **make(T=60, D=70, I=140, E=3, K=2))
