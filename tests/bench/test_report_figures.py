"""What the figures show, read from matplotlib's own objects."""

import numpy as np
import pytest
from results_factory import make_results

from gatelab.bench.report.figures.curves import curves
from gatelab.bench.report.figures.load import load_by_gate, load_by_layer
from gatelab.bench.report.figures.quality import distance, quality
from gatelab.bench.report.figures.style import BASELINE, colours, short, thin
from gatelab.bench.report.run import Run


def test_thin_takes_means_of_equal_runs():
    assert thin(np.arange(10.0), 4).tolist() == [1.0, 4.0, 7.0, 9.0]  # three by three, and what is left
    assert thin(np.arange(3.0), 4).tolist() == [0.0, 1.0, 2.0]
    assert thin(np.array([[1.0, 2.0], [3.0, 6.0]]), 1).tolist() == [[2.0, 4.0]]


def test_short_names_keep_their_end():
    assert short("topk-softmax") == "topk-softmax"
    assert short("/home/me/gates/mygate.py:MyGate") == "mygate.py:MyGate"
    assert short("a" * 40 + ":Gate", 10) == "…aaaa:Gate"


def test_baselines_are_grey_and_learned_gates_are_not():
    colour = colours(Run(make_results(steps=8)))
    assert {colour[name] for name in ("dense", "random", "round-robin")} == {BASELINE}
    learned = [colour[name] for name in colour if name not in ("dense", "random", "round-robin")]
    assert len(set(learned)) == 5
    assert BASELINE not in learned


def test_every_seed_has_its_point_and_a_leaky_figure_no_place_on_the_scale():
    scores = {("topk-softmax", 0): 2.0, ("topk-softmax", 1): 2.1, ("expert-choice", 0): 2.2, ("expert-choice", 1): 2.4}
    drawing = quality(Run(make_results(["topk-softmax", "expert-choice"], steps=8, scores=scores)))
    assert drawing is not None
    (axes,) = drawing.figure.axes
    circles = [line.get_xdata() for line in axes.lines if line.get_marker() == "o"]
    assert np.concatenate([np.asarray(x) for x in circles]).tolist() == [2.0, 2.1, 2.2, 2.4]
    assert axes.get_xlim() == pytest.approx((2.0 - 0.024, 2.4 + 0.024))  # 6 % of 0.4 on each side; leaky is 1.7
    assert [text.get_text() for text in axes.texts] == ["leaky 1.700"]


def test_an_interval_that_leaves_the_plot_ends_in_an_arrowhead():
    # differences 0.1 and −0.1 from the reference, σ = 0.1, so the interval is 0 ± 1.27, cut at ±(0.1 + 0.6 · 0.2)
    scores = {("topk-softmax", 0): 2.0, ("topk-softmax", 1): 2.0, ("attention", 0): 2.1, ("attention", 1): 1.9}
    drawing = distance(Run(make_results(["topk-softmax", "attention"], steps=8, scores=scores)))
    assert drawing is not None
    (axes,) = drawing.figure.axes
    heads = {
        str(line.get_marker()): np.asarray(line.get_xdata()).item() for line in axes.lines if line.get_marker() in "<>"
    }
    assert heads == pytest.approx({"<": -0.22, ">": 0.22})
    assert "attention +0.000" in drawing.alt


def test_heat_maps_show_the_logarithm_of_load_over_mean():
    results = make_results(["topk-softmax"], seeds=1, steps=8, num_layers=2, num_experts=2)
    # of a mean of 4: a half, one and a half; 0 is cut at a quarter
    results["cells"][0]["layers"][1] |= {"load_steps": [0, 4], "load": [[2, 6], [0, 8]], "max_violation": 1.0}
    half = np.log2(1.5)
    for drawing, panel in ((load_by_gate(Run(results)), 0), (load_by_layer(Run(results), "topk-softmax", "x"), 1)):
        assert drawing is not None
        image = drawing.figure.axes[panel].images[0].get_array()
        assert image is not None
        np.testing.assert_allclose(np.asarray(image).T, [[-1, half], [-2, 1]])
    assert "layer" in drawing.alt


def test_curves_are_means_over_seeds_before_reference_and_baselines_in_grey():
    results = make_results(["topk-softmax", "attention", "random"], steps=2)
    for cell in results["cells"]:
        cell["history"]["max_violation"] = [len(cell["router"]) + cell["seed"], 3.0]
    drawing = curves(Run(results), "max_violation", "x", "MaxVio", "")
    assert drawing is not None
    topk, attention, random = [12.5, 3.0], [9.5, 3.0], [6.5, 3.0]
    shown = [[np.asarray(line.get_ydata()).tolist() for line in axes.lines] for axes in drawing.figure.axes[:3]]
    assert shown == [[topk, random, front] for front in (topk, attention, random)]
