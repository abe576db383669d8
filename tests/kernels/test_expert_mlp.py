"""`expert_mlp`: a worked example, Hugging Face's experts, and the cpu backend against the reference in every gradient.

Axes: T tokens, D hidden size, E experts, K experts per token, I intermediate size, J features out of `up_proj`.
"""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from gatelab import kernels
from gatelab.kernels.activations import ACTIVATIONS
from gatelab.kernels.cpu import _cores, _expert_backward, _expert_forward, _memory
from gatelab.kernels.cpu import expert_mlp as cpu_module
from gatelab.kernels.cpu._gemm import padded

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


@pytest.mark.parametrize("wanted", [("x_TD",), ("weights",), ("up_proj",), ("x_TD", "weights"), ("down_bias",)])
@pytest.mark.parametrize("on_input", [False, True])
def test_only_the_wanted_gradients(wanted: tuple[str, ...], on_input: bool) -> None:
    arguments = make(bias=True)
    expected = y_and_gradients(arguments, "cpu", weights_on_input=on_input)
    for name in DIFFERENTIABLE:
        arguments[name] = arguments[name].detach().requires_grad_(name in wanted)
    actual = y_and_gradients(arguments, "cpu", weights_on_input=on_input)
    assert set(actual) == {"y", *wanted}
    for name in actual:
        assert torch.equal(actual[name], expected[name]), name


def test_any_strides() -> None:
    arguments = make(bias=True)
    expected = y_and_gradients(arguments, "cpu")
    strided = {n: torch.stack([t, t], -1)[..., 0] for n, t in arguments.items()}
    strided["up_proj"] = arguments["up_proj"].transpose(1, 2).contiguous().transpose(1, 2)
    assert not any(t.is_contiguous() for t in strided.values())
    for name, tensor in strided.items():
        strided[name] = tensor.detach().requires_grad_(name in DIFFERENTIABLE)
    assert_equal(y_and_gradients(strided, "cpu"), expected, TOLERANCE[torch.float32])
    y = kernels.expert_mlp(**strided)
    y.sum().backward()  # an expanded gradient, of stride 0
    assert strided["x_TD"].grad is not None


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast(backend: str) -> None:
    arguments = make()
    low = {n: t if n in ARGUMENTS[1:4] or t is None else t.detach().bfloat16() for n, t in arguments.items()}
    with torch.autocast("cpu", torch.bfloat16):
        actual = y_and_gradients(arguments, backend)
    assert actual["y"].dtype == actual["up_proj"].dtype == torch.float32
    with kernels.use(backend):
        assert torch.equal(actual["y"].bfloat16(), kernels.expert_mlp(**low))


def test_deterministic() -> None:
    arguments = make(T=3500, D=48, I=40, K=2)
    first, second = y_and_gradients(arguments, "cpu"), y_and_gradients(arguments, "cpu")
    for name, tensor in first.items():
        assert torch.equal(second[name], tensor), name


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("two_threads")
def test_one_core_gives_the_same() -> None:
    arguments = make(T=3500, D=48, I=40, K=2)
    expected = y_and_gradients(arguments, "cpu")
    torch.set_num_threads(1)
    assert_equal(y_and_gradients(arguments, "cpu"), expected, TOLERANCE[torch.float32])


@pytest.mark.usefixtures("two_threads")
def test_inference_mode() -> None:
    arguments = make(T=3500, D=48, I=40, K=2)
    expected = kernels.expert_mlp(**arguments).detach()
    with torch.inference_mode():
        assert torch.equal(kernels.expert_mlp(**arguments), expected)


def test_compiles_without_a_graph_break() -> None:
    arguments = make(bias=True)
    expected = y_and_gradients(arguments, "cpu")
    compiled = torch.compile(kernels.expert_mlp, fullgraph=True, backend="aot_eager")
    y = compiled(**arguments)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    y.backward(grad)
    assert torch.equal(y, expected["y"])
    for name in DIFFERENTIABLE:
        assert torch.equal(arguments[name].grad, expected[name]), name


def test_operators_keep_their_promises() -> None:
    arguments = make(bias=True)
    tensors = [arguments[name] for name in ARGUMENTS]
    torch.library.opcheck(cpu_module._forward, (*tensors, "swiglu", False, True))
    hidden = cpu_module._forward(*tensors, "swiglu", False, True)[1].detach()
    detached = [t.detach() for t in tensors]
    grad = torch.ones_like(detached[0])
    torch.library.opcheck(cpu_module._backward, (grad, hidden, *detached, "swiglu", False, True, True, True))


def test_second_derivative() -> None:
    arguments = make(T=5, D=3, I=2, E=3, K=2, dtype=torch.float64)
    for backend in BACKENDS:
        with kernels.use(backend):
            y = kernels.expert_mlp(**arguments)
        (grad,) = torch.autograd.grad(y.square().sum(), arguments["x_TD"], create_graph=True)
        if backend == "reference":
            grad.sum().backward()
            assert arguments["x_TD"].grad.isfinite().all()
        else:
            with pytest.raises(NotImplementedError, match="reference"):
                grad.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_callable_with_parameters_of_its_own(backend: str) -> None:
    arguments = make(activation="relu2")
    expected = y_and_gradients(arguments, backend, activation="relu2")
    scale = torch.tensor(2.0, requires_grad=True)
    with kernels.use(backend):
        y = kernels.expert_mlp(**arguments, activation=lambda h: torch.relu(h).square() * scale)
    torch.testing.assert_close(y, 2 * expected["y"])
    y.sum().backward()
    # y is linear in the scale
    torch.testing.assert_close(scale.grad, y.detach().sum() / 2)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("sizes", [(9, 1), (1, 1, 1, 1)])  # one task has it all: no two shares balance
def test_every_task_is_done_once(sizes: tuple[int, ...]) -> None:
    done: list[int] = []
    _cores.run(done.append, range(len(sizes)), sizes, 1 << 40)
    assert sorted(done) == list(range(len(sizes)))
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_a_core_works_alone_and_without_gradients() -> None:
    seen: list[tuple[int, bool, int]] = []
    both = threading.Barrier(2, timeout=30)

    def work(task: int) -> None:
        both.wait()  # only two cores at once come past this
        seen.append((torch.get_num_threads(), torch.is_grad_enabled(), threading.get_ident()))

    _cores.run(work, range(2), (1, 1), 1 << 40)
    assert [(threads, grad) for threads, grad, _ in seen] == [(1, False)] * 2
    assert len({ident for *_, ident in seen}) == 2


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("sizes", [(1, 1), (9, 1)])
def test_an_error_on_any_core_is_raised(sizes: tuple[int, ...]) -> None:
    def work(task: int) -> None:
        if task == 1:
            raise IndexError("task 1")

    with pytest.raises(IndexError, match="task 1"):
        _cores.run(work, range(2), sizes, 1 << 40)
    assert torch.get_num_threads() == 2


def test_without_this_openmp_every_operation_has_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cores, "_openmp", lambda: None)
    done: list[int] = []
    _cores.run(done.append, range(3), (1, 1, 1), 1 << 40)
    assert done == [0, 1, 2]


def test_memory_is_recycled_once_no_tensor_uses_it() -> None:
    shape = (1 << 19,)
    first = _memory.empty(shape, torch.float32)
    address, view = first.data_ptr(), first[3:5]
    assert address % 64 == 0
    del first
    second = _memory.empty(shape, torch.float32)
    assert second.data_ptr() != address  # a view still uses it
    del view
    assert _memory.empty(shape, torch.float32).data_ptr() == address


def test_idle_memory_is_no_more_than_was_once_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "_idle", [])
    small = [_memory.empty((1 << 20,), torch.uint8) for _ in range(4)]
    del small
    for more in range(8):  # one at a time, no two of the same size
        _memory.empty(((4 << 20) + more,), torch.uint8)
        assert sum(buffer.nbytes for buffer in _memory._idle) < (4 << 20) + 4096


def test_a_block_uses_the_memory_of_the_one_before() -> None:
    scratches = _memory.Scratches(8, (3, 5), torch.float32)
    with scratches.lend() as scratch:
        first, second = scratch.take(8, 3), scratch.take(7, 5)
        with scratches.lend() as other:  # another core at the same time
            assert other.take(8, 3).data_ptr() != first.data_ptr()
    first.fill_(1)
    second.fill_(2)
    assert (first == 1).all()
    with scratches.lend() as scratch:
        assert scratch.take(8, 3).data_ptr() == first.data_ptr()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"activation": "swish"}, "activation='swish'.*swiglu"),
        ({"activation": "gelu"}, "needs J = I"),
        ({"token_index": torch.zeros(3, dtype=torch.int32)}, "token_index"),
        ({"weights": torch.ones(3)}, "weights"),
        ({"expert_offsets": torch.zeros(3, dtype=torch.int64)}, "expert_offsets"),
        ({"x_TD": torch.ones(37, 5)}, "x_TD"),
        ({"down_proj": torch.ones(6, 5, 7)}, "down_proj"),
        ({"up_bias": torch.ones(6, 5)}, "up_bias"),
        ({"down_bias": torch.ones(6, 5)}, "down_bias"),
        ({"x_TD": torch.ones(37, 12, dtype=torch.float64)}, "autocast"),
    ],
)
def test_errors_name_the_argument_in_one_line(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match) as error:
        kernels.expert_mlp(**(make() | change))
    assert "\n" not in str(error.value)
