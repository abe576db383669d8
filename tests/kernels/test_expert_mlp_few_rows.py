"""Without gradients and with up to four rows per expert, SwiGLU experts have a kernel of their own."""

import pytest
import torch
from expert_mlp_cases import DIFFERENTIABLE, TOLERANCE, assert_equal, make

from gatelab import kernels
from gatelab.kernels.cpu import _fused
from gatelab.kernels.cpu._expert_forward import Arguments, Piece


@pytest.mark.parametrize("is_compiled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(2, 12, 7, 6, 1), (6, 40, 33, 6, 3), (9, 8, 64, 5, 2)])  # 1; 0 to 5; 2 to 8 rows
def test_equal_to_float64(
    sizes: tuple[int, ...], dtype: torch.dtype, is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_compiled:
        monkeypatch.setattr(_fused, "_numba", lambda name: None)
    arguments = make(*sizes, dtype=dtype)
    exact = {n: t.detach().double() if n in DIFFERENTIABLE and t is not None else t for n, t in arguments.items()}
    with torch.no_grad():
        actual = kernels.expert_mlp(**arguments)
        with kernels.use("reference"):
            expected = kernels.expert_mlp(**exact)
    assert actual.dtype == dtype
    assert_equal({"y": actual.double()}, {"y": expected}, TOLERANCE[dtype])


def test_which_rows_are_few() -> None:
    arguments = {n: t.detach() if t is not None else t for n, t in make(T=10, E=3, K=1).items()}
    arguments["expert_offsets"] = torch.tensor([0, 2, 8, 8])  # 8 rows, 2 experts with any
    assert _uses_few_rows(arguments)
    assert not _uses_few_rows(arguments | {"expert_offsets": torch.tensor([0, 4, 9, 9])})
    assert not _uses_few_rows(arguments | {"activation": "geglu"})
    assert not _uses_few_rows(arguments | {"weights_on_input": True})
    assert not _uses_few_rows(arguments | {"up_bias": torch.zeros(3, 14)})
    assert not _uses_few_rows(arguments | {"up_proj": arguments["up_proj"].mT.contiguous().mT})


def _uses_few_rows(arguments: dict) -> bool:
    return _fused.few_rows(Arguments(**{"activation": "swiglu", "weights_on_input": False} | arguments)) is not None


def test_a_nan_and_a_large_gate() -> None:
    # x goes through unchanged: silu(g)·u = g² for large g, 0 for large negative g, whose exponential is infinite
    x = torch.tensor([[100.0], [-100.0], [float("nan")], [0.0]])
    y = kernels.expert_mlp(
        x, torch.arange(4), torch.tensor([0, 4]), torch.ones(4), torch.ones(1, 2, 1), torch.ones(1, 1, 1)
    )
    torch.testing.assert_close(y[[0, 1, 3], 0], torch.tensor([1e4, 0.0, 0.0]), rtol=0, atol=0)
    assert y[2].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("T", [6, 90])  # few rows, and blocks in bfloat16
@pytest.mark.parametrize("wrong", [-1, 90])
def test_a_token_that_does_not_exist(wrong: int, T: int, dtype: torch.dtype) -> None:
    arguments = {n: t.detach() if t is not None else t for n, t in make(T, 32, 32, 6, 2, dtype=dtype).items()}
    arguments["token_index"][1] = wrong
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        kernels.expert_mlp(**arguments)


@pytest.mark.parametrize(("start", "stop", "fits"), [(0, 6, True), (0, 7, False), (-2, 3, False)])
def test_offsets_past_the_assignments(start: int, stop: int, fits: bool) -> None:
    tensors = [t.detach() if t is not None else t for t in make(6, 32, 32, 2, 1).values()]
    arguments = Arguments(*tensors, "swiglu", False)
    assert _fused.is_plain(arguments, [Piece(0, start, stop), Piece(1, 0, 1)]) == fits


@pytest.mark.parametrize(
    ("offsets", "fits"), [([0, 3, 6], True), ([0, 3, 7], False), ([-2, 3, 6], False), ([0, 7, 6], False)]
)
def test_offsets_past_the_assignments_of_few_rows(offsets: list[int], fits: bool) -> None:
    arguments = {n: t.detach() if t is not None else t for n, t in make(6, 32, 32, 2, 1).items()}
    assert _uses_few_rows(arguments | {"expert_offsets": torch.tensor(offsets)}) == fits


def test_no_expert_is_used_and_one_thread() -> None:
    arguments = {n: t.detach() if t is not None else t for n, t in make(5, 40, 33, 3, 1).items()}
    assert not kernels.expert_mlp(**arguments | {"expert_offsets": torch.zeros(4, dtype=torch.int64)}).any()
    y = kernels.expert_mlp(**arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    try:
        assert torch.equal(kernels.expert_mlp(**arguments), y)  # whatever the number of cores
    finally:
        torch.set_num_threads(threads)
