"""Five ways to the same prices, on the same scores: what is left to do after n sweeps. Writes transport.svg beside it.

    python docs/figures/transport.py

Scores: N(0, 1) + 2·N(0, 1) per expert; T = 4096, E = 64, k = 2. Every method yields prices p (a bias is −p), and routes
by the top k of scores − p. Overflow: the share of assignments above the even load. Gap: how far the dual bound at p,
Σ_t top-k(s_t − p) + (kT/E)·Σ p, is above the optimum, relative to it; prices are optimal where it is 0.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from gatelab.kernels import balanced_assignment

T, E, K, SWEEPS = 4096, 64, 2, 100
LOAD = K * T // E


def draw() -> Tensor:
    """(T, E) scores with popular experts."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(T, E, generator=generator) + 2 * torch.randn(E, generator=generator)


def loss_free(scores: Tensor, step: float = 0.01) -> Iterator[Tensor]:
    """A fixed step against the sign of the load error (Wang et al. 2024, arXiv 2408.15664)."""
    p = torch.zeros(E)
    while True:
        loads = (scores - p).topk(K, dim=1).indices.flatten().bincount(minlength=E)
        p = p + step * (loads - LOAD).sign()
        yield p


def quantiles(scores: Tensor, clamp: bool) -> Iterator[Tensor]:
    """By token, then by expert, the price of the first one left out; clamped at 0 it is BIP (arXiv 2502.15451)."""
    p = torch.zeros(E)
    while True:
        token = (scores - p).topk(K + 1, dim=1).values[:, -1:]
        token = token.clamp(min=0) if clamp else token
        p = (scores - token).topk(LOAD + 1, dim=0).values[-1]
        p = p.clamp(min=0) if clamp else p
        yield p


def sinkhorn(scores: Tensor) -> Iterator[Tensor]:
    """Rows and columns of exp(s) scaled to their sums: soft quantiles, at temperature 1."""
    p = torch.zeros(E)
    while True:
        rows = (scores - p).logsumexp(dim=1, keepdim=True)
        p = (scores - rows).logsumexp(dim=0)
        yield p


METHODS = {
    "loss-free bias, u = 0.01": loss_free,
    "BIP": lambda scores: quantiles(scores, clamp=True),
    "quantile balancing": lambda scores: quantiles(scores, clamp=False),
    "Sinkhorn": sinkhorn,
}

STYLES = {  # Okabe and Ito's colours, which the colour-blind can tell apart; dashes for print without colour
    "loss-free bias, u = 0.01": ("#0072B2", "-"),
    "BIP": ("#D55E00", "--"),
    "quantile balancing": ("#009E73", "-."),
    "Sinkhorn": ("#CC79A7", ":"),
}


def measure(scores: Tensor, p: Tensor, optimum: float) -> tuple[float, float]:
    """Overflow and gap of prices p."""
    best = (scores.double() - p).topk(K, dim=1)
    loads = best.indices.flatten().bincount(minlength=E)
    bound = float(best.values.sum() + LOAD * p.double().sum())
    return float((loads - LOAD).clamp(min=0).sum()) / (K * T), (bound - optimum) / optimum


def curves() -> dict[str, list[tuple[float, float]]]:
    """Overflow and gap of every method after 1…SWEEPS sweeps; the exact solver's once."""
    scores = draw()
    exact = balanced_assignment(scores, k=K)
    optimum = float(exact.value)
    found = {
        name: [measure(scores, p, optimum) for p, _ in zip(method(scores), range(SWEEPS), strict=False)]
        for name, method in METHODS.items()
    }
    return {**found, "exact": [measure(scores, exact.prices, optimum)]}


def main() -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "transport", "svg.fonttype": "none", "font.size": 11}
    from matplotlib import pyplot as plt

    found = curves()
    figure, axes = plt.subplots(2, 1, figsize=(6, 7.2), sharex=True, layout="constrained")
    for panel, (axis, title) in enumerate(
        zip(
            axes,
            ("overflow: share of assignments above the even load", "optimality gap (exact: 0, drawn at 1e-7)"),
            strict=True,
        )
    ):
        for name, points in found.items():
            values = [max(point[panel], 1e-7) for point in points]
            if name == "exact":
                axis.axhline(values[0], color="black", label="exact prices")
            else:
                color, dashes = STYLES[name]
                axis.plot(range(1, SWEEPS + 1), values, dashes, color=color, label=name, linewidth=1.8)
        axis.set(xscale="log", yscale="log", title=title)
    axes[1].set_xlabel("sweeps over the scores")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})
    for name, points in found.items():
        print(
            f"{name:26s}", *(f"{n + 1}: {points[n][0]:.4f} {points[n][1]:.1e} " for n in (0, 9, 99) if n < len(points))
        )


if __name__ == "__main__":
    main()
