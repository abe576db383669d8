"""What a layer does beside its matrix products, on a GPU: gate, sort and combine, against copying the same bytes."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from gatelab import kernels
from gatelab.bench.speed.alternate import Call
from gatelab.bench.speed.gpu_race import Check, distance, race

COPY = "copy of the same bytes"
Size = tuple[int, int, int, int]  # T, D, E, K
SIZES: tuple[Size, ...] = ((65536, 4096, 8, 2), (65536, 2048, 128, 8), (32768, 7168, 256, 8))


def run(
    sizes: Iterable[Size] = SIZES,
    *,
    device: str = "cuda",
    rounds: int = 21,
    seed: int = 0,
    report: Callable[[dict], None] = lambda row: None,
) -> list[dict]:
    """Time `topk_gate`, `group_by_expert`, the inverse of the sort, and the sum of each token's rows.

    Arguments as in `gatelab.bench.speed.gpu_experts.run`, with sizes (T, D, E, K); `bytes` counts what must be read and
    written once, and `share` is the share of the bandwidth of a copy that moves as many.
    """
    return [row for size in sizes for row in _compare(size, device, rounds, seed, report)]


def _compare(size: Size, device: str, rounds: int, seed: int, report: Callable[[dict], None]) -> list[dict]:
    from gatelab.kernels.triton._expert_combine import by_token, combine

    T, D, E, K = size
    M = T * K
    torch.manual_seed(seed)
    logits_TE = torch.randn(T, E, device=device)
    ids_TK = logits_TE.topk(K).indices
    with kernels.use("reference"):
        chosen = kernels.topk_gate(logits_TE, K, renormalize=True)
        order, offsets = kernels.group_by_expert(ids_TK, E)
    token_index, weights = order // K, torch.rand(M, device=device)
    rows_MD = torch.randn(M, D, dtype=torch.bfloat16, device=device)
    by = by_token(token_index, offsets, T)
    y_TD = torch.zeros(T, D, device=device).index_add_(0, token_index, rows_MD * weights[:, None])

    def gate() -> Tensor:
        return kernels.topk_gate(logits_TE, K, renormalize=True).topk_weights

    def sort() -> Tensor:
        return kernels.group_by_expert(ids_TK, E)[0]

    def invert() -> Tensor:
        return by_token(token_index, offsets, T)[0]

    def add() -> Tensor:
        return combine(rows_MD, weights, *by)

    # bytes: logits read, weights, ids and logsumexp written · ids read, order written, twice · rows read, sums written
    kinds: tuple[tuple[str, Callable[[], Tensor], Tensor, int], ...] = (
        ("topk_gate", gate, chosen.topk_weights, 4 * T * E + 12 * M + 4 * T),
        ("group_by_expert", sort, order, 16 * M),
        ("inverse of the sort", invert, token_index.argsort(stable=True), 16 * M),
        ("combine", add, y_TD, 2 * M * D + 12 * M + 2 * T * D),
    )
    rows = []
    for name, function, expected, size_in_bytes in kinds:
        with torch.no_grad(), kernels.use("triton"):
            checks: dict[str, Check] = {COPY: "-", name: distance([function()], [expected])}
        rows += race(
            {"kernel": name, "tokens": T, "hidden": D, "experts": E, "top_k": K, "bytes": size_in_bytes},
            {COPY: _copy(size_in_bytes, device), name: _in_triton(function)},
            checks,
            limit=COPY,
            work=size_in_bytes / 1e9,
            rate="gigabytes_per_second",
            device=device,
            rounds=rounds,
            report=report,
        )
    return rows


def _in_triton(function: Callable[[], Tensor]) -> Call:
    def call() -> None:
        with torch.no_grad(), kernels.use("triton"):
            function()

    return call


def _copy(size_in_bytes: int, device: str) -> Call:
    """Reads half of them and writes the other half."""
    source = torch.randint(256, (size_in_bytes // 2,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
