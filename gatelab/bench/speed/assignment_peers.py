"""Other solvers of the balanced assignment, each as (T, E) scores and k → expert_ids (T, k). E divides k·T."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

SINKHORN = "Sinkhorn, 100 sweeps"


def peers(T: int, k: int, exact: bool = True) -> dict[str, Callable[[Tensor, int], np.ndarray]]:
    """The installed solvers that can do this size: SciPy's needs a (T, T) matrix, and only one knows k > 1."""
    found: dict[str, Callable[[Tensor, int], np.ndarray]] = {SINKHORN: sinkhorn}
    if not exact:
        return found
    if k == 1 and T <= 4096:
        found["SciPy linear_sum_assignment"] = linear_sum_assignment
    try:
        # Whether it is there; it has no types.
        import ot  # noqa: F401  # pyright: ignore[reportMissingImports]

        if k == 1:
            found["POT ot.emd"] = earth_mover
    except ImportError:
        pass
    try:
        # Whether it is there; the type checker's environment may lack it.
        import ortools  # noqa: F401  # pyright: ignore[reportMissingImports]

        found["OR-tools min-cost flow"] = min_cost_flow
    except ImportError:
        pass
    return found


def sinkhorn(scores: Tensor, k: int) -> np.ndarray:
    """100 sweeps of row and column scaling, then the top k: neither balanced nor optimal. float32, by matrix-vector
    products, which is the fastest way to do it."""
    T, E = scores.shape
    plan = (scores - scores.amax(dim=1, keepdim=True)).exp()
    columns = torch.ones(E)
    rows = torch.ones(T)
    for _ in range(100):
        rows = 1 / (plan @ columns)
        columns = (T / E) / (rows @ plan)
    return (plan * columns).topk(k, dim=1).indices.numpy()


def linear_sum_assignment(scores: Tensor, k: int) -> np.ndarray:
    """One column for every slot of every expert."""
    from scipy.optimize import linear_sum_assignment

    T, E = scores.shape
    slots = scores.numpy().repeat(T // E, axis=1)
    return linear_sum_assignment(slots, maximize=True)[1][:, None] // (T // E)


def earth_mover(scores: Tensor, k: int) -> np.ndarray:
    """Network simplex; without `numItermax` it would stop before the optimum."""
    import ot  # pyright: ignore[reportMissingImports]

    T, E = scores.shape
    plan = ot.emd(np.ones(T), np.full(E, T / E), -scores.double().numpy(), numItermax=1_000_000_000)
    return np.asarray(plan).argmax(axis=1)[:, None]


def min_cost_flow(scores: Tensor, k: int) -> np.ndarray:
    """Cost-scaling push-relabel on integer costs, 2³⁰ for the largest score."""
    from ortools.graph.python import min_cost_flow  # pyright: ignore[reportMissingImports]

    T, E = scores.shape
    costs = -np.rint(scores.double().numpy() * (2.0**30 / float(scores.abs().max()))).astype(np.int64)
    tokens, experts = np.divmod(np.arange(T * E), E)
    solver: Any = min_cost_flow.SimpleMinCostFlow()
    arcs = solver.add_arcs_with_capacity_and_unit_cost(tokens, T + experts, np.ones(T * E, np.int64), costs.ravel())
    solver.set_nodes_supplies(np.arange(T + E), np.concatenate([np.full(T, k), np.full(E, -(k * T // E))]))
    if solver.solve() != solver.OPTIMAL:
        raise RuntimeError("OR-tools found no optimum")
    return experts[np.flatnonzero(solver.flows(arcs))].reshape(T, k)
