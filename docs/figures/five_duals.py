"""The same linear program seen five ways: MaxVio over updates on a stationary stream. Writes five_duals.svg beside it.

    python docs/figures/five_duals.py

Stream: logits z = N(0, 1) + offset_e, offsets N(0, 1) drawn once; E = 16, K = 2, a fresh batch of T = 4096 per update.
The gates are the recipes, with the identity for a score. MaxVio = max_e n_e/n̄ − 1.
"""

from pathlib import Path

import torch

import gatelab
from gatelab import Router

E, K, T = 16, 2, 4096
GATES = {
    "loss-free": "loss-free bias, u = 0.001",
    "bip": "BIP, 4 sweeps",
    "quantile-balancing": "quantiles",
    "balanced-assignment": "exact assignment (BASE)",
    "sinkhorn": "Sinkhorn",
}


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


def first_below(values: list[float], limit: float = 0.1) -> int | None:
    """The update from which on all values stay below the limit."""
    above = [i for i, value in enumerate(values) if value >= limit]
    start = above[-1] + 1 if above else 0
    return start if start < len(values) else None


def main(updates: int = 1000) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "five duals", "svg.fonttype": "none", "font.size": 10}
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, constrained_layout=True)
    for name, label in GATES.items():
        curves = run(name, updates if name == "loss-free" else 100)
        for ax, values in zip(axes, curves, strict=True):
            ax.plot(range(1, len(values) + 1), values, label=label, linewidth=1.5)
        print(
            f"{name:20s} below 0.1 for good from update {first_below(curves[0])} in training,"
            f" {first_below(curves[1])} in evaluation; after 20: {curves[0][20]:.3f}, {curves[1][20]:.3f}"
        )
    for ax, title in zip(axes, ("the training batch itself", "evaluation, next batch, state so far"), strict=True):
        ax.axhline(0.1, color="gray", linewidth=0.8, linestyle=":")
        ax.set(title=title, xlabel="updates + 1", xscale="log", yscale="log")
    axes[0].set_ylabel("MaxVio")
    axes[0].legend(frameon=False)
    figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
