"""The same linear program seen five ways: MaxVio over updates on a stationary stream. Writes five_duals.svg beside it.

    python docs/figures/five_duals.py

Stream: logits z = N(0, 1) + offset_e, offsets N(0, 1) drawn once; E = 16, K = 2, a fresh batch of T = 4096 per update.
The gates are the recipes, with the identity for a score. MaxVio = max_e n_e/n̄ − 1.
Drawn: medians over windows that grow with the updates, and when the loss-free bias is first below 0.1. Printed: MaxVio
after some numbers of updates.
"""

import statistics
from pathlib import Path

import torch

import gatelab
from gatelab import Router

E, K, T = 16, 2, 4096
GATES = {  # label, colour (Okabe and Ito's, which the colour-blind can tell apart), dashes for print without colour
    "loss-free": ("loss-free bias, u = 0.001", "#0072B2", "-"),
    "bip": ("BIP, 4 sweeps", "#D55E00", "--"),
    "quantile-balancing": ("quantiles", "#009E73", "-."),
    "balanced-assignment": ("exact assignment (BASE)", "#000000", "-"),
    "sinkhorn": ("Sinkhorn", "#CC79A7", ":"),
}
BALANCED = 0.1
FLOOR = 1e-3  # where 0 is drawn on a logarithmic axis
SHOWN = (0, 1, 2, 3, 4, 5, 20, 100, 200, 300, 500, 1000)


def offsets(seed: int = 0) -> torch.Tensor:
    """(E,) what makes some experts popular, drawn once per stream."""
    return torch.randn(E, generator=torch.Generator().manual_seed(seed))


def gate(name: str) -> Router:
    """The recipe over the logits themselves."""
    router = gatelab.create_router(name, E, E, K)
    with torch.no_grad():
        router.score.weight.copy_(torch.eye(E))
    return router


def max_violation(router: Router, x_TE: torch.Tensor) -> float:
    """MaxVio of one forward."""
    load_E = router(x_TE).tokens_per_expert.double()
    return float(load_E.max() / load_E.mean() - 1)


@torch.no_grad()
def run(name: str, updates: int, seed: int = 0) -> tuple[list[float], list[float]]:
    """MaxVio per update: of the training forward, and of evaluation on the next batch with the state so far."""
    router, offset_E = gate(name), offsets(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    training, evaluation = [], []
    x_TE = torch.randn(T, E, generator=generator) + offset_E
    for _ in range(updates + 1):
        evaluation.append(max_violation(router.eval(), x_TE))
        with gatelab.record(router.train()) as tape:
            training.append(max_violation(router, x_TE))
        gatelab.update_routers(tape)
        x_TE = torch.randn(T, E, generator=generator) + offset_E
    return training, evaluation


def smooth(values: list[float]) -> tuple[list[int], list[float]]:
    """Medians over windows that grow as the logarithmic axis shrinks; 0 is drawn at FLOOR."""
    points, medians, start = [], [], 0
    while start < len(values):
        stop = max(start + 1, int(1.25 * start))
        points.append(start + 1)
        medians.append(max(statistics.median(values[start:stop]), FLOOR))
        start = stop
    return points, medians


def main(updates: int = 1000) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "five duals", "svg.fonttype": "none", "font.size": 11}
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 1, figsize=(6, 6.6), sharex=True, sharey=True, constrained_layout=True)
    for name, (label, color, dashes) in GATES.items():
        curves = run(name, updates if name == "loss-free" else 100)
        for ax, values in zip(axes, curves, strict=True):
            ax.plot(*smooth(values), dashes, color=color, label=label, linewidth=1.8)
            if name == "loss-free":
                first = next(n for n, value in enumerate(values) if value < BALANCED)
                ax.plot(first + 1, BALANCED, "o", color=color)
                ax.annotate(f"{first} updates", (first + 1, BALANCED), (0, 10), textcoords="offset points")
                print(f"{name} is first below {BALANCED} after {first} updates")
        for where, values in zip(("training", "evaluation"), curves, strict=True):
            print(f"{name:20s} {where:10s}", *(f"{n}: {values[n]:.3f}" for n in SHOWN if n < len(values)))
    for ax, title in zip(axes, ("in training: the batch itself", "in evaluation: the next batch"), strict=True):
        ax.set(title=title, ylabel="MaxVio", xscale="log", yscale="log")
        ax.axhline(BALANCED, color="#999999", linewidth=0.8)
    axes[1].set_xlabel("updates + 1")
    axes[1].legend(frameon=False, fontsize=9, loc="lower left")
    figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
