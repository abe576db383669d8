"""Exact balanced assignment in NumPy: reads like the algorithm, and is what runs without numba.

The tokens are collapsed: all that matters between two experts i and j is the cheapest token to move, the one on i and
not on j with the least q_ti − q_tj (arc i→j). Start from any prices p, every token on its top-k experts of q − p;
while an expert is over-full, move tokens along a shortest path from over-full to under-full experts. Lowering the
prices by the distances keeps every arc length q_ti − q_tj − p_i + p_j ≥ 0, which says the same as "every token sits
on a top-k set of q − p": once the bounds are met, that is the optimum (complementary slackness).

Successive shortest paths with node potentials: Ahuja, Magnanti & Orlin, Network Flows (1993), section 9.7.
"""

import itertools

import numpy as np

from gatelab.kernels.assignment import Assignment, assigned
from gatelab.kernels.transportation import Problem, Solver


def balanced_assignment(scores, *, capacity=None, k=1, prices=None, token_mask=None, strict=False) -> Assignment:
    """See `gatelab.kernels.balanced_assignment`."""
    return assigned(_SOLVER, scores, capacity, k, prices, token_mask, strict)


def _solve_from(problem: Problem, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solve from the best of some start prices (S, E), or from better ones.

    Prices serve if few tokens sit on an over-full expert there (12 %, counted on a sample). Otherwise every fourth
    token is solved first, recursively, and its prices serve: no temperature, no step size.
    """
    T, E = problem.scores.shape
    sample = _every(problem, max(1, T // max(4096, 16 * E)))
    overflows = [_overflow(sample, start) for start in starts]
    prices = starts[np.argmin(overflows)]
    if min(overflows) > 0.12 * problem.k * len(sample.scores) and T * problem.k > 4 * E:
        prices = _solve_from(_every(problem, 4), prices[None])[1]
    return _solve(problem, prices)


def _every(problem: Problem, stride: int) -> Problem:
    """Every stride-th token, with the bounds scaled and loosened to whole tokens."""
    scores, T = problem.scores[::stride], len(problem.scores)
    n = len(scores)
    return problem._replace(scores=scores, lower=problem.lower * n // T, upper=-(-problem.upper * n // T))


def _overflow(problem: Problem, prices: np.ndarray) -> int:
    """How many assignments have to move."""
    return np.maximum(_hub(problem, prices, _choose(problem, prices)[1])[2], 0).sum()


def _hub(problem: Problem, prices: np.ndarray, loads: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The node that carries the slack of the bounds, as it goes with prices and loads.

    An expert's tokens above its lower bound count as the hub's. Expert e and the hub trade them freely, so at the
    optimum an expert dearer than the hub has all of its `upper − lower`, a cheaper one has none.

    Returns:
        The prices (E+1,), the hub's last; what the hub holds of each expert (E,); the excess of every node (E+1,).
    """
    width, above = problem.upper - problem.lower, loads - problem.lower
    demand = len(problem.scores) * problem.k - problem.lower.sum()
    dearest = np.argsort(-prices, kind="stable")
    last = dearest[min(np.searchsorted(np.cumsum(width[dearest]), demand), len(prices) - 1)]
    held = np.where(prices == prices[last], np.clip(above, 0, width), width * (prices > prices[last]))
    return np.append(prices, prices[last]), held, np.append(above - held, held.sum() - demand)


def _choose(problem: Problem, prices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which token sits on which expert (T, E), and the loads; a tie goes to the tied expert with most room."""
    reduced = problem.grid.round(problem.scores) - prices
    kth = -np.partition(-reduced, problem.k - 1, axis=1)[:, problem.k - 1, None]
    on, tied = reduced > kth, reduced == kth
    missing = problem.k - on.sum(axis=1)
    unique = tied.sum(axis=1) == missing
    on[unique] |= tied[unique]
    loads = on.sum(axis=0)
    for t in np.flatnonzero(~unique):
        experts = np.flatnonzero(tied[t])
        roomiest = experts[np.argsort((loads - problem.upper)[experts], kind="stable")[: missing[t]]]
        on[t, roomiest] = True
        loads[roomiest] += 1
    return on, loads


def _solve(problem: Problem, prices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The optimal expert_ids (T, k) and prices (E,) from any prices."""
    q = problem.grid.round(problem.scores)
    T, E = q.shape
    on, loads = _choose(problem, prices)
    p, held, excess = _hub(problem, prices, loads)
    width = problem.upper - problem.lower
    cost = np.full((E + 1, E + 1), np.inf)  # of each arc, the hub last
    token = np.full((E, E), -1)
    changed = set(range(E))
    while True:
        for i in changed:
            cost[i, :E], token[i] = _cheapest_moves(q, on, i)
        cost[:E, E] = np.where(held < width, 0.0, np.inf)
        cost[E, :E] = np.where(held > 0, 0.0, np.inf)
        if not (excess > 0).any():
            break
        length = cost - p[:, None] + p
        path = _zero_path(length, excess)
        if path is None:
            distance = _distances(length, excess > 0)
            # Past the farthest under-full expert nothing is gained: there the distances are cut off.
            p -= np.minimum(distance, distance[(excess < 0) & (distance < np.inf)].max())
            changed = set()
            continue
        excess[path[0]] -= 1
        excess[path[-1]] += 1
        changed = set(path) - {E}
        for i, j in reversed(list(itertools.pairwise(path))):  # from its far end
            if j == E:
                held[i] += 1
            elif i == E:
                held[j] -= 1
            else:
                t = token[i, j]
                on[t, i], on[t, j] = False, True
                changed |= set(np.flatnonzero(on[t]).tolist())
    ids = np.nonzero(on)[1].reshape(T, problem.k)
    best_first = np.argsort(-np.take_along_axis(q - p[:E], ids, axis=1), axis=1, kind="stable")
    return np.take_along_axis(ids, best_first, axis=1), p[:E]


def _cheapest_moves(q: np.ndarray, on: np.ndarray, i: int) -> tuple[np.ndarray, np.ndarray]:
    """For every expert j the least q_ti − q_tj over the tokens t on i and not on j (inf = none), and that token."""
    tokens = np.flatnonzero(on[:, i])
    if len(tokens) == 0:
        return np.full(q.shape[1], np.inf), np.full(q.shape[1], -1)
    cost = np.where(on[tokens], np.inf, q[tokens, i, None] - q[tokens])
    return cost.min(axis=0), tokens[cost.argmin(axis=0)]


def _distances(length: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Dijkstra from all sources at once."""
    distance = np.where(source, 0.0, np.inf)
    open_nodes = np.ones(len(distance), bool)
    for _ in range(len(distance)):
        u = np.argmin(np.where(open_nodes, distance, np.inf))
        open_nodes[u] = False
        distance = np.minimum(distance, distance[u] + length[u])
    return distance


def _zero_path(length: np.ndarray, excess: np.ndarray) -> list[int] | None:
    """Nodes along arcs of length 0 from an over-full to an under-full one, or None; breadth first."""
    came_from = {int(source): -1 for source in np.flatnonzero(excess > 0)}
    queue = list(came_from)
    for u in queue:
        if excess[u] < 0:
            path = [u]
            while came_from[path[-1]] >= 0:
                path.append(came_from[path[-1]])
            return path[::-1]
        for v in np.flatnonzero(length[u] == 0):
            if int(v) not in came_from:
                came_from[int(v)] = u
                queue.append(int(v))
    return None


def _not_top_k(problem: Problem, ids: np.ndarray, prices: np.ndarray) -> float:
    reduced = problem.grid.round(problem.scores) - prices
    worst_held = np.take_along_axis(reduced, ids, axis=1).min(axis=1)
    np.put_along_axis(reduced, ids, -np.inf, axis=1)
    distinct = np.isneginf(reduced).sum(axis=1)
    return np.maximum(reduced.max(axis=1) - worst_held, 0).sum() + (problem.k - distinct).sum()


_SOLVER = Solver(_solve_from, _not_top_k)
