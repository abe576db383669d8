"""Temporary: the linear program handed to SciPy."""

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import linprog

from gatelab.kernels.transportation import stated


def balanced_assignment(scores, *, capacity=None, k=1, prices=None, token_mask=None, strict=False):
    """See `gatelab.kernels.balanced_assignment`."""
    rows = torch.ones(len(scores), dtype=torch.bool) if token_mask is None else token_mask.bool().cpu()
    p = stated(scores.cpu()[rows], capacity, k, prices)
    T, E = p.scores.shape
    q = p.grid.round(p.scores)
    ids = torch.full((len(scores), k), -1)
    found = np.zeros(E)
    value = 0.0
    if T:
        per_token = sparse.kron(sparse.eye(T), np.ones((1, E)))
        per_expert = sparse.kron(np.ones((1, T)), sparse.eye(E))
        best = linprog(
            -q.ravel(),
            A_ub=sparse.vstack([per_expert, -per_expert]),
            b_ub=np.concatenate([p.upper, -p.lower]),
            A_eq=per_token,
            b_eq=np.full(T, k),
            bounds=(0, 1),
            method="highs-ds",
        )
        held = best.x.reshape(T, E).round().astype(bool)
        found = -(best.ineqlin.marginals[:E] - best.ineqlin.marginals[E:])
        ids[rows] = torch.from_numpy(np.nonzero(held)[1].reshape(T, k))
        value = p.scores[held & (p.scores > -np.inf)].sum()
    numbers = (torch.tensor(float(value)).double(), torch.zeros((), dtype=torch.float64), torch.tensor(0))
    return tuple(x.to(scores.device) for x in (ids, torch.from_numpy(found), *numbers))
