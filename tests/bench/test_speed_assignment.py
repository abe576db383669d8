"""`gatelab speed assignment`, on sizes that take no time: who takes part, what is checked, what is counted."""

import numpy as np
import pytest
import torch

from gatelab.bench.speed import assignment
from gatelab.bench.speed.assignment_peers import SINKHORN, linear_sum_assignment, peers, sinkhorn


def test_a_row_for_every_solver_each_with_its_ratio_and_proof():
    seen = []
    rows = assignment.run([(64, 8, 1), (64, 8, 2)], ["skewed", "tied"], rounds=1, report=seen.append)
    assert rows == seen
    assert {(row["tokens"], row["experts"], row["top_k"], row["scores"]) for row in rows} == {
        (64, 8, k, family) for k in (1, 2) for family in ("skewed", "tied")
    }
    for row in rows:
        assert row["milliseconds"] > 0
        assert row["ratio"] > 0
        if row["solver"] != SINKHORN:
            assert row["exact"]
            assert row["overload"] == 1.0
    assert all(row["ratio"] == 1.0 for row in rows if row["solver"] == assignment.OURS)


def test_scipy_where_its_matrix_fits_and_only_sinkhorn_where_exact_peers_take_minutes():
    assert "SciPy linear_sum_assignment" in peers(4096, 1)
    assert "SciPy linear_sum_assignment" not in peers(4097, 1)
    assert "SciPy linear_sum_assignment" not in peers(64, 2)
    assert list(peers(64, 1, exact=False)) == [SINKHORN]


def test_every_family_where_there_are_many_tokens(monkeypatch):
    monkeypatch.setattr(assignment, "peers", lambda T, k, exact: {})
    monkeypatch.setattr(assignment, "MANY", 64)
    rows = assignment.run([(64, 8, 1), (32, 8, 1)], rounds=1)
    families = {T: {row["scores"] for row in rows if row["tokens"] == T} for T in (64, 32)}
    assert families == {64: set(assignment.FAMILIES + assignment.MORE_FAMILIES), 32: set(assignment.FAMILIES)}


def test_a_wrong_peer_stops_the_table(monkeypatch):
    monkeypatch.setattr(assignment, "peers", lambda T, k, exact: {"wrong": lambda scores, k: np.zeros((T, k), int)})
    with pytest.raises(RuntimeError, match="wrong is not optimal on normal scores, 64x8, k=1"):
        assignment.run([(64, 8, 1)], ["normal"], rounds=1)


def test_the_number_of_threads_is_restored():
    threads = torch.get_num_threads()
    assignment.run([(16, 4, 1)], ["normal"], rounds=1)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("family", assignment.FAMILIES + assignment.MORE_FAMILIES)
def test_scores_come_again_and_the_next_batch_differs(family):
    scores = assignment.draw_scores(family, 32, 4, seed=1)
    assert scores.shape == (32, 4)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, assignment.draw_scores(family, 32, 4, seed=1))
    assert not torch.equal(scores, assignment.draw_scores(family, 32, 4, seed=1, batch=1))


def test_unknown_scores_are_named():
    with pytest.raises(ValueError, match="family='cubic' is unknown"):
        assignment.draw_scores("cubic", 4, 2, seed=0)


def test_scipy_by_hand_and_sinkhorn_overloads():
    # 4 + 3 is more than 5 + 1; see test_base_problem_by_hand
    assert linear_sum_assignment(torch.tensor([[5.0, 3.0], [4.0, 1.0]]), 1).tolist() == [[1], [0]]
    scores = assignment.draw_scores("tied", 256, 8, seed=0)
    assert np.bincount(sinkhorn(scores, 1).ravel(), minlength=8).max() > 32
