"""The experts alone on a GPU, against one dense matrix product of the same FLOPs and against torch's `grouped_mm`."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gatelab import kernels
from gatelab.bench.speed.alternate import Call
from gatelab.bench.speed.contest import OURS, Case
from gatelab.bench.speed.gpu_race import Check, distance, race

DENSE, GROUPED_MM = "dense matrix product", "torch grouped_mm"
# Mixtral 8×7B, Qwen3-30B-A3B, DeepSeek-V3. The last one's 64k tokens leave no room for what grouped_mm keeps.
SIZES = ((4096, 14336, 8, 2, 65536), (2048, 768, 128, 8, 65536), (7168, 2048, 256, 8, 32768))
CASES = tuple(
    Case(T, D, I, E, K, torch.bfloat16, backward)
    for D, I, E, K, most in SIZES
    for T in (16384, most)
    for backward in (False, True)
)
CHECKED_TOKENS = 2048  # of which the reference's gradients are taken; its outputs of all


class Tensors(NamedTuple):
    """What `expert_mlp` takes; `order` is of the floating ones."""

    x_TD: Tensor
    token_index: Tensor
    expert_offsets: Tensor
    weights: Tensor
    up_proj: Tensor
    down_proj: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """Those that gradients go to."""
        return self.x_TD, self.weights, self.up_proj, self.down_proj


Mlp = Callable[..., Tensor]


def run(
    cases: Iterable[Case] = CASES,
    *,
    device: str = "cuda",
    rounds: int = 7,
    seed: int = 0,
    report: Callable[[dict], None] = lambda row: None,
) -> list[dict]:
    """Time forward, and forward + backward to the tokens, their weights and the experts' parameters.

    Args:
        cases: what to time.
        device: `cuda`; `cpu`, in the interpreter, tests the plumbing.
        rounds: after one that is not counted.
        seed: of everything drawn.
        report: called with every row as soon as it is known.

    Returns:
        The rows of `race`; `share` is the share of a dense product's speed.
    """
    return [row for case in cases for row in _compare(case, device, rounds, seed, report)]


def draw(case: Case, device: str, seed: int) -> Tensors:
    """Tokens that choose their K experts at random, and weights that keep the variance."""
    torch.manual_seed(seed)
    order, offsets = kernels.group_by_expert(torch.rand(case.T, case.E, device=device).topk(case.K).indices, case.E)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=case.dtype, device=device)

    return Tensors(
        normal(case.T, case.D),
        order // case.K,
        offsets,
        torch.rand(case.T * case.K, device=device) / case.K,
        normal(case.E, 2 * case.I, case.D).mul_(case.D**-0.5),
        normal(case.E, case.D, case.I).mul_(case.I**-0.5),
    )


def grouped_mm(
    x_TD: Tensor, token_index: Tensor, expert_offsets: Tensor, weights: Tensor, up_proj: Tensor, down_proj: Tensor
) -> Tensor:
    """The same with torch's grouped product: gather, product, activation, product, weighted sum."""
    ends = expert_offsets[1:].int()
    gate, up = F.grouped_mm(x_TD[token_index], up_proj.transpose(1, 2), offs=ends).chunk(2, dim=1)
    rows_MD = F.grouped_mm(F.silu(gate) * up, down_proj.transpose(1, 2), offs=ends) * weights[:, None]
    return torch.zeros_like(x_TD, dtype=torch.float32).index_add(0, token_index, rows_MD).to(x_TD.dtype)


def ours(*tensors: Tensor) -> Tensor:
    """`expert_mlp` in Triton, whatever the device's own backend."""
    with kernels.use("triton"):
        return kernels.expert_mlp(*tensors)


def _reference(*tensors: Tensor) -> Tensor:
    with kernels.use("reference"):
        return kernels.expert_mlp(*tensors)


def _compare(case: Case, device: str, rounds: int, seed: int, report: Callable[[dict], None]) -> list[dict]:
    mlps: dict[str, Mlp] = {OURS: ours, GROUPED_MM: grouped_mm}
    tensors = draw(case, device, seed)
    checks: dict[str, Check] = {DENSE: "-", **_checks(mlps, case, tensors, device, seed)}
    calls: dict[str, Call] = {DENSE: dense_product(case, device)}
    for name, mlp in mlps.items():
        calls[name] = (
            partial(_step, mlp, tensors, torch.randn_like(tensors.x_TD))
            if case.backward
            else partial(_forward, mlp, tensors)
        )
    flops = 6 * case.D * case.I * case.T * case.K * (3 if case.backward else 1)
    rows = race(
        case.facts,
        calls,
        checks,
        limit=DENSE,
        work=flops / 1e12,
        rate="teraflops",
        device=device,
        rounds=rounds,
        report=report,
    )
    if device == "cuda":
        del tensors, calls
        torch.cuda.empty_cache()
    return rows


def _checks(mlps: dict[str, Mlp], case: Case, tensors: Tensors, device: str, seed: int) -> dict[str, Check]:
    """Distance from the reference: of y with all tokens, of y and every gradient with some."""
    few = draw(replace(case, T=min(case.T, CHECKED_TOKENS)), device, seed)._replace(
        up_proj=tensors.up_proj, down_proj=tensors.down_proj
    )
    expected, expected_few = _forward(_reference, tensors), _results(_reference, few)
    found: dict[str, Check] = {}
    for name, mlp in mlps.items():
        try:
            every = distance([_forward(mlp, tensors)], [expected])
            found[name] = max(every, distance(_results(mlp, few), expected_few))
        except torch.OutOfMemoryError:
            found[name] = "out of memory"
    return found


def _forward(mlp: Mlp, tensors: Tensors) -> Tensor:
    with torch.no_grad():
        return mlp(*tensors)


def _results(mlp: Mlp, tensors: Tensors) -> tuple[Tensor, ...]:
    """y and every gradient."""
    inputs = Tensors(*(t.detach().requires_grad_(t.is_floating_point()) for t in tensors))
    y_TD = mlp(*inputs)
    grad_TD = torch.ones_like(y_TD).cumsum(1).cos()  # the same for all, and no two columns alike
    return (y_TD.detach(), *torch.autograd.grad(y_TD, inputs.leaves, grad_TD))


def _step(mlp: Mlp, tensors: Tensors, grad_TD: Tensor) -> None:
    inputs = Tensors(*(t.detach().requires_grad_(t.is_floating_point()) for t in tensors))
    torch.autograd.grad(mlp(*inputs), inputs.leaves, grad_TD)


def dense_product(case: Case, device: str) -> Call:
    """(T·K, D) times (D, 3·I), and with `backward` the two products of its gradients."""
    M = case.T * case.K
    a, b = (torch.randn(shape, dtype=case.dtype, device=device) for shape in ((M, case.D), (case.D, 3 * case.I)))

    def call() -> None:
        c = a @ b
        if case.backward:
            _ = c @ b.t(), a.t() @ c

    return call
