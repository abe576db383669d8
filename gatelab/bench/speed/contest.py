"""Expert layers against each other: sizes, rounds, checks and rows, whoever takes part."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gatelab.bench.speed.alternate import Call, alternate, median_ratio
from gatelab.bench.speed.provenance import provenance
from gatelab.layers.experts import Experts
from gatelab.routers.routing import Routing

OURS, DENSE, GATE, COPY = "gatelab", "dense SwiGLU", "its gate alone", "copy of the used weights"
FEW_TOKENS = 16


@dataclass(frozen=True)
class Case:
    """Sizes and type of one layer; `backward` times forward + backward."""

    T: int
    D: int
    I: int
    E: int
    K: int
    dtype: torch.dtype = torch.float32
    backward: bool = False

    @property
    def facts(self) -> dict[str, object]:
        """The columns that say which case a row is of."""
        return {
            "tokens": self.T,
            "hidden": self.D,
            "intermediate": self.I,
            "experts": self.E,
            "top_k": self.K,
            "dtype": str(self.dtype).removeprefix("torch."),
            "pass": "forward + backward" if self.backward else "forward",
        }


CASES = (
    *(Case(2048, 512, 1024, 8, 2, dtype, b) for dtype in (torch.float32, torch.bfloat16) for b in (False, True)),
    *(Case(4096, 512, 256, 64, 6, dtype, b) for dtype in (torch.float32, torch.bfloat16) for b in (False, True)),
    *(Case(T, 1024, 512, 64, 8, dtype) for dtype in (torch.float32, torch.bfloat16) for T in (FEW_TOKENS, 1)),
)


@dataclass(frozen=True)
class Contestant:
    """A layer (T, D) -> (T, D), and what it must answer, or why there is nothing to compare with."""

    layer: nn.Module
    expected_TD: Tensor | str


@dataclass(frozen=True)
class Contest:
    """Who competes on which tokens.

    Attributes:
        case: the sizes.
        x_TD: the tokens.
        contestants: by name; one is `DENSE`.
        beside: what is timed with them, by name, and has nothing to answer.
    """

    case: Case
    x_TD: Tensor
    contestants: dict[str, Contestant]
    beside: dict[str, Call]


def compete(contest: Contest, rounds: int, report: Callable[[dict], None]) -> list[dict]:
    """One row per contestant, and per call beside them.

    Returns:
        The sizes; `pass`, `layer`; `check`, how far the output is from what is expected, relative to it, or why there
        is nothing to compare with; `milliseconds`, the median over the rounds; `ratio` to the dense layer, the median
        over the rounds; `machine`, `versions`, `commit`. Where the check fails, no time.
    """
    case, x_TD = contest.case, contest.x_TD
    checks: dict[str, float | str] = {name: _check(c, x_TD) for name, c in contest.contestants.items()}
    calls = {name: step(c.layer, x_TD, case.backward) for name, c in contest.contestants.items() if _ok(checks[name])}
    seconds = alternate(calls | contest.beside, rounds)
    rows = []
    for name in [*checks, *contest.beside]:
        times = seconds.get(name)
        row = {
            **case.facts,
            "layer": name,
            "check": checks.get(name),
            "milliseconds": 1e3 * statistics.median(times) if times else None,
            "ratio": median_ratio(times, seconds[DENSE]) if times else None,
            **provenance(),
        }
        report(row)
        rows.append(row)
    return rows


def step(layer: nn.Module, x_TD: Tensor, backward: bool) -> Call:
    """What is timed: a forward, or a forward and a backward pass to x and all parameters."""
    grad_TD, x_leaf = torch.randn_like(x_TD), x_TD.clone().requires_grad_(backward)

    def call() -> None:
        with torch.set_grad_enabled(backward):
            y_TD = layer(x_leaf)
        if backward:
            y_TD.backward(grad_TD)
            layer.zero_grad()
            x_leaf.grad = None

    return call


def _check(contestant: Contestant, x_TD: Tensor) -> float | str:
    if isinstance(contestant.expected_TD, str):
        return contestant.expected_TD
    with torch.no_grad():
        error_TD = contestant.layer(x_TD).double() - contestant.expected_TD
    return float(error_TD.norm() / contestant.expected_TD.double().norm())


def _ok(check: float | str) -> bool:
    return isinstance(check, str) or check < 0.02  # bfloat16 rounds to 2⁻⁹ several times; NaN fails too


def copy_of_used_weights(case: Case, experts: Experts, routing: Routing) -> dict[str, Call]:
    """The least a forward on few tokens can take is to read each used expert's weights once."""
    if case.T > FEW_TOKENS or case.backward:
        return {}
    used = routing.tokens_per_expert.nonzero().flatten().tolist()
    sources = [weight.detach()[e] for e in used for weight in (experts.gate_up_proj, experts.down_proj)]
    targets = [torch.empty_like(source) for source in sources]

    def call() -> None:
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)

    return {COPY: call}
