"""The report's words: who wins, what is noise, what is missing, what must not be ranked."""

import copy
import math
import random
from typing import Any

import pytest
from results_factory import make_results

from gatelab.bench.report import tables
from gatelab.bench.report.notes import gate_facts
from gatelab.bench.report.paired import estimate_noise, paired_difference
from gatelab.bench.report.run import Run
from gatelab.bench.report.summary import ranking, summarise

TWO_SEEDS = "Only 2 seeds: the intervals rest on"


def run_of(scores: dict[str, list[float]], **changes) -> Run:
    """A run with these bits per byte, seed by seed."""
    by_cell = {(name, seed): score for name, found in scores.items() for seed, score in enumerate(found)}
    seeds = max(map(len, scores.values()))
    return Run(make_results(list(scores), seeds=seeds, scores=by_cell, steps=8, **changes))


def finding(run: Run, lead: str) -> str:
    return dict(summarise(run).findings)[lead]


def test_clear_winner():
    run = run_of({"topk-softmax": [2.50, 2.60], "attention": [2.40, 2.50], "random": [2.90, 3.00]})
    summary = summarise(run)
    assert summary.headline == "attention is lowest at 2.450 bits per byte, clearly below every other learned gate"
    assert finding(run, "Against topk-softmax").startswith("Clearly better: attention (−0.100")
    assert [warning for warning in summary.warnings if not warning.startswith(TWO_SEEDS)] == []


def test_lowest_mean_within_noise_is_no_winner():
    run = run_of({"topk-softmax": [2.50, 2.60], "attention": [2.60, 2.40], "random": [2.90, 3.00]})
    assert summarise(run).headline.endswith("but no other learned gate is clearly behind")
    assert "not told apart by these seeds: attention" in finding(run, "Against topk-softmax").lower()


def test_headline_names_the_equals():
    run = run_of({"topk-softmax": [2.50, 2.60], "attention": [2.45, 2.62], "expert-choice": [2.95, 3.12]})
    assert summarise(run).headline.endswith("not clearly ahead of topk-softmax")


def test_the_headline_pays_for_picking_its_leader_among_many():
    # Five gates, two seeds, noise of all but the leader alike: alone each gap of 0.1 is clear, for 10 pairs none is.
    scores = {f"gate-{i}": [2.5 + jitter, 2.5 - jitter] for i, jitter in enumerate((0.02, -0.02, 0.02, -0.02))}
    run = run_of({"topk-softmax": [2.40, 2.40], **scores})
    assert tables.difference(run, "gate-0", "topk-softmax").verdict == "worse"
    assert summarise(run).headline.endswith("but no other learned gate is clearly behind")


def test_noise_of_which_nothing_comes_is_not_called_clear():
    # 44 gates that differ by noise alone, 200 runs: a headline claims a difference in at most a few of them
    draw, claimed = random.Random(0), 0
    for _ in range(200):
        scores = {f"gate-{i}": {seed: draw.gauss(2.5, 0.02) for seed in range(2)} for i in range(44)}
        noise = estimate_noise(scores)
        first = min(scores, key=lambda name: sum(scores[name].values()))
        others = [paired_difference(scores[name], scores[first], noise, math.comb(44, 2)) for name in scores]
        claimed += any(d is not None and d.verdict == "worse" for d in others)
    assert claimed <= 20  # 5 % are allowed, which is 10; chance alone passes 20 in one of a thousand such tests


def test_many_gates_are_counted_not_listed():
    scores = {"topk-softmax": [2.50, 2.51], **{f"gate-{i}": [2.40 + i / 1000, 2.41 + i / 1000] for i in range(9)}}
    run = run_of(scores)
    assert summarise(run).headline.startswith("gate-0 is lowest at 2.405")
    assert finding(run, "Against topk-softmax") == "Clearly better: 9 gates (−0.100 to −0.092)."


def test_a_gate_that_does_not_beat_random_is_named():
    run = run_of({"topk-softmax": [2.30, 2.40], "attention": [2.90, 2.85], "random": [2.80, 2.90]})
    (warning,) = (warning for warning in summarise(run).warnings if "random" in warning)
    assert warning.startswith("Not clearly better than random: attention (+0.025")
    assert "topk-softmax" not in warning


def test_without_random_nothing_is_claimed():
    assert any("random was not in this run" in w for w in summarise(run_of({"topk-softmax": [2.5, 2.6]})).warnings)


def test_a_baseline_that_wins_is_said():
    run = run_of({"topk-softmax": [2.50, 2.60], "dense": [2.10, 2.20], "random": [2.9, 3.0]})
    assert any(w.startswith("dense, a baseline, is clearly better") for w in summarise(run).warnings)


@pytest.mark.parametrize(
    ("seeds", "said"),
    [(1, "Only 1 seed: no interval can be given."), (2, f"{TWO_SEEDS} 1 degree of freedom"), (3, None)],
)
def test_few_seeds_are_said(seeds, said):
    few = [
        w for w in summarise(run_of({"topk-softmax": [2.5] * seeds, "random": [2.9] * seeds})).warnings if "Only" in w
    ]
    assert [w.startswith(said) for w in few] == ([True] if said else [])


def test_noise_is_said():
    # differences −0.10 and −0.12: σ = 0.01 (test_report_paired.py), and 12.7 times that cannot be told from none
    said = finding(run_of({"topk-softmax": [2.40, 2.41], "random": [2.50, 2.53]}), "Noise")
    assert said.startswith("One cell scatters by 0.010 bits per byte")
    assert said.endswith(
        "(1 degree of freedom), so with 2 seeds a difference below 0.127, looked at alone, is not told from none."
    )


def test_leaky_figure_is_never_ranked():
    results = make_results(["topk-softmax", "expert-choice"], steps=8)  # expert-choice: 2.455, leaky 1.855
    assert ranking(Run(results)) == ["topk-softmax", "expert-choice"]
    rows = {row[0].text: row[1] for row in tables.quality(Run(results)).rows}
    assert rows["expert-choice"].note.startswith("leaky: 1.8")
    assert rows["expert-choice"].sort == pytest.approx(2.46, abs=0.01)


def test_ranking_uses_the_seeds_that_all_have():
    # seed 1 is harder for all: attention would lose by its mean of 2.55 against 2.50, but wins seed 0
    results = make_results(["topk-softmax", "attention"], steps=8)
    for cell, score in zip(results["cells"], [2.50, None, 2.40, 2.70], strict=True):
        cell["val_bits_per_byte"] = score
    assert ranking(Run(results)) == ["attention", "topk-softmax"]


def test_missing_and_diverged_cells_are_named():
    results = make_results(["topk-softmax", "attention", "random"], steps=8)
    results["cells"] = [c for c in results["cells"] if (c["router"], c["seed"]) != ("attention", 0)]
    results["cells"][0]["val_bits_per_byte"] = math.nan
    warnings = summarise(Run(results)).warnings
    assert "Unfinished: 5 of 6 cells are done. Missing: attention (seed 0)." in warnings
    assert "No finite validation figure, left out of every comparison: topk-softmax (seed 0)." in warnings


def test_a_gate_without_a_causal_form_is_not_scored_and_not_called_diverged():
    results = make_results(["topk-softmax", "soft-moe", "random"], steps=8)
    for cell in results["cells"][2:4]:
        cell |= {"val_bits_per_byte": None, "as_trained_bits_per_byte": 1.5}
    run = Run(results)
    warnings = summarise(run).warnings
    assert "Not scored, having no causal form: soft-moe (seeds 0 and 1)." in warnings
    assert run.diverged == {}
    assert ranking(run) == ["topk-softmax"]


def test_skipped_steps_are_said():
    results = make_results(["topk-softmax", "random"], steps=8)
    results["cells"][1]["skipped_steps"] = 3
    said = "Training skipped steps because a gradient was not finite: topk-softmax (seed 1)."
    assert said in summarise(Run(results)).warnings


def test_facts_of_a_gate_survive_a_run_of_an_older_version():
    results = make_results(["expert-choice"], steps=8)
    facts = dict(gate_facts(Run(results), "expert-choice"))
    assert facts["Experts per token"] == "varies, 2.00 as built, 2.00 kept at the end of training"
    assert facts["Per token"].startswith("197 k FLOPs useful, 210 k FLOPs executed")
    for field in ("executed_flops_per_token", "elementwise_per_token", "sorted_per_token"):
        del results["routers"]["expert-choice"][field]
    for cell in results["cells"]:
        del cell["skipped_steps"]
        cell["layers"] = []
    facts = dict(gate_facts(Run(results), "expert-choice"))
    assert facts["Experts per token"] == "varies, 2.00 as built"
    assert facts["Per token"] == "197 k FLOPs useful"


def test_balance_takes_the_worst_layer_and_the_mean_of_seeds():
    results = make_results(["topk-softmax", "attention"], steps=8)
    for cell in results["cells"]:
        for layer, violation in zip(cell["layers"], (1.0, 2.0 + cell["seed"]), strict=True):
            layer["max_violation"] = violation
            layer["dead_experts"] = cell["seed"]
    (row, _) = tables.balance(Run(results)).rows
    assert row[1].text == "2.50"  # layer 1: (2 + 3)/2; layer 0: 1
    assert row[-1].text == "1 of 16"  # (0 + 1)/2 in each of two layers, of 2 × 8 experts


def test_guarantees_show_both_modes_where_they_differ():
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in tables.guarantees(Run(make_results(steps=8))).rows}
    assert rows["balanced-assignment"] == ["no → yes", "no → yes", "1 × mean → no bound", "yes", "2", "yes"]
    assert rows["expert-choice"] == ["no", "no", "1 × mean", "yes", "varies", "no"]


def test_newer_schema_is_refused():
    with pytest.raises(ValueError, match="schema=2 is newer than 1"):
        Run(make_results(["random"], steps=8) | {"schema": 2})


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (["cells"], None, "cells is null, not a list"),
        (["cells"], [1, 2], r"cells\[0\] is 1, not an object"),
        (["cells", 0, "layers"], "x", r"cells\[0\].layers is 'x', not a list"),
        (["cells", 0, "layers"], [[]], r"cells\[0\].layers\[0\] is \[\]"),
        (["cells", 0, "val_bits_per_byte"], "oops", "val_bits_per_byte is 'oops', not null or a number within"),
        (["cells", 0, "val_bits_per_byte"], 1e308, "val_bits_per_byte is 1e.308, not null or a number within"),
        (["cells", 0, "seed"], True, "seed is True"),
        (["cells", 0, "seed"], 2**70, "seed is 11"),
        (["cells", 0, "seed"], 7, r"cells\[0\]: seed 7 is not among the 2 from first_seed = 0"),
        (["cells", 0, "history", "step"], [0], "the lists of history differ in length"),
        (["cells", 0, "layers", 0, "load"], [[1]], "the lists of layers.0 differ in length"),
        (["cells", 0, "seed"], 1, "router 'random' with seed 1 is there twice"),
        (["cells", 0, "router"], "other", "router 'other' is not among routers"),
        (["failures"], [{"router": "random", "seed": 1, "reason": "x"}], r"failures\[0\]: router 'random' with seed 1"),
        (["failures"], [{"router": "random", "seed": 1}], r"failures\[0\].reason is missing, not text"),
        (["routers"], [], r"routers is \[\], not an object"),
        (["routers", "random", "flops_per_token"], {}, "routers.random.flops_per_token.router is missing"),
        (["config", "text"], 5, "config.text is 5, not an object"),
        (["config", "seeds"], 10**12, "config.seeds is 1000000000000, not a whole number from 1 to 1000"),
        (["config", "seeds"], -1, "config.seeds is -1, not a whole number from 1"),
        (["config", "seeds"], 2.0, "config.seeds is 2.0, not a whole number"),
        (["config", "seeds"], "2", "config.seeds is '2', not a whole number"),
        (["config", "num_experts"], 0, "config.num_experts is 0, not a whole number from 1"),
        (["machine"], {}, "machine.platform is missing"),
    ],
)
def test_results_of_another_shape_are_refused_by_the_place(path, value, says):
    results = copy.deepcopy(make_results(["random"], steps=8))
    *way, last = path
    place = results
    for step in way:
        place = place[step]
    place[last] = value
    with pytest.raises(ValueError, match=says):
        Run(results)


@pytest.mark.parametrize(
    "path", [["machine", "cores"], ["routers", "random", "fallback"], ["cells", 0, "train_seconds"]]
)
def test_what_may_be_null_may_not_be_missing(path):
    results = make_results(["random"], steps=8)
    *way, last = path
    place: Any = results
    for step in way:
        place = place[step]
    del place[last]
    with pytest.raises(ValueError, match=rf"{last} is missing"):
        Run(results)


def test_what_is_not_known_here_is_no_damage():
    results = make_results(["random"], steps=8)
    for place in (results, results["config"], results["cells"][0], results["cells"][0]["history"]):
        place["note"] = "mine"
    assert Run(results).num_finished == 2
