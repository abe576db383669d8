"""What write_report and write_comparison leave on disk, read back with parsers that know nothing of the templates."""

import copy
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from results_factory import make_results

from gatelab.bench.report import write_comparison, write_report

HOSTILE = "<script>alert(1)</script>\"' | `b` $x_{$ & \x00\x1b[31m\ud800 日本"
FIGURES = {"quality", "difference", "training", "max-violation", "load", "flops", "gate-time", "layers-0", "layers-1"}


class Page(HTMLParser):
    """Every tag with its attributes, and the text that a reader sees."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] not in ("style", "script"):
            self.text += data

    def values(self, *attributes: str) -> list[str]:
        return [value for _, attrs in self.tags for name, value in attrs.items() if name in attributes and value]


def small(routers=("topk-softmax", "random"), **changes):
    return make_results(routers, steps=8, num_layers=1, **changes)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """The folder of a report on a few routers, one of them leaky."""
    folder = tmp_path_factory.mktemp("report")
    write_report(make_results(["topk-softmax", "attention", "expert-choice", "random"], steps=8), folder)
    return folder


@pytest.fixture(scope="module")
def page(report) -> Page:
    return Page(report / "report.html")


def test_every_figure_is_written_as_svg_and_png(report):
    names = {*FIGURES, "layers-2", "layers-3"}
    assert {file.name for file in (report / "figures").iterdir()} == {
        f"{n}.{kind}" for n in names for kind in ("svg", "png")
    }
    for name in names:
        ElementTree.parse(report / "figures" / f"{name}.svg")
        assert (report / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_page_fetches_nothing(report, page):
    assert {tag for tag, _ in page.tags} & {"img", "iframe", "object", "embed", "audio", "video", "base"} == set()
    for address in page.values("href", "xlink:href", "src", "srcset", "action", "data"):
        assert address.startswith(("#", "data:")), address
    assert [attrs for tag, attrs in page.tags if tag in ("script", "link") and "src" in attrs] == []
    assert not re.search(r"@import|url\((?!#)", (report / "report.html").read_text(encoding="utf-8"))
    (policy,) = (attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy
    assert policy.startswith("default-src 'none'")


def test_ids_are_unique_and_references_resolve(page):
    ids = Counter(page.values("id"))
    assert [name for name, count in ids.items() if count > 1] == []
    used = re.findall(r"url\(#([^)]*)\)", " ".join(page.values("style", "clip-path", "fill")))
    links = [address[1:] for address in page.values("href", "xlink:href") if address.startswith("#")]
    assert used
    assert set(used) | set(links) <= set(ids)


def test_every_figure_has_an_alternative_text(page):
    pictures = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(pictures) == 11  # seven, and one for each of four routers
    assert all(attrs["role"] == "img" and len(attrs["aria-label"] or "") > 40 for attrs in pictures)


def test_page_and_markdown_say_the_same(report, page):
    text = (report / "report.md").read_text(encoding="utf-8").replace("\\", "")
    for said in (
        "is lowest at",
        "Against topk-softmax",
        "Against random",
        "2 of 2 seeds",
        "leaky",
        "each token goes to the 2",
    ):
        assert (said in text) == (said in page.text), said
    assert "leaky" in text
    for address in re.findall(r"\]\(([^)]+)\)", text):
        assert (report / address).is_file()


def test_written_again_is_the_same_byte_for_byte(tmp_path):
    for folder in ("a", "b"):
        write_report(small(), tmp_path / folder)
    files = sorted(f.relative_to(tmp_path / "a") for f in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 2 * len(FIGURES - {"difference"}) + 2  # random alone is not compared with topk-softmax
    assert [f for f in files if (tmp_path / "a" / f).read_bytes() != (tmp_path / "b" / f).read_bytes()] == []


def test_results_are_not_touched(tmp_path):
    results = small()
    before = copy.deepcopy(results)
    write_report(results, tmp_path)
    assert results == before


def test_hostile_names_are_text(tmp_path):
    results = small([HOSTILE, "topk-softmax", "random"])
    results["config"]["text"]["source"] = "<img src=x onerror=alert(2)>"
    results["routers"][HOSTILE] |= {
        "source": "<b>bold",
        "equation": "</svg><script>alert(3)</script>",
        "fallback": "<i>",
    }
    page = Page(write_report(results, tmp_path))
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert {tag for tag, _ in page.tags} & {"img", "b"} == {"b"}  # ours, around a gate's name
    assert page.values("onerror", "onload", "onclick") == []
    assert "<script>alert(1)</script>" in page.text
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)<", text)
    rows = [line for line in text.splitlines() if line.startswith("|") and "alert(1)" in line]
    assert rows
    assert all(len(re.findall(r"(?<!\\)\|", row)) in (4, 5, 7, 8) for row in rows)  # as many bars as columns, and one
    for svg in (tmp_path / "figures").glob("*.svg"):
        ElementTree.parse(svg)


@pytest.mark.parametrize("finished", [0, 1, 3])
def test_half_finished_run_renders_and_names_what_is_missing(tmp_path, finished):
    results = small()
    results["cells"] = results["cells"][:finished]
    page = Page(write_report(results, tmp_path))
    assert f"Unfinished: {finished} of 4 cells are done." in page.text
    assert "random (seed" in page.text
    assert "nan" not in page.text.lower()


def test_nulls_and_odd_values_render(tmp_path):
    results = json.loads(json.dumps(small()))
    for cell in results["cells"]:
        cell["gate_seconds_per_step"] = None
        cell["history"] |= {"max_violation": [None] * 8, "train_bits_per_byte": [float("inf")] * 8}
        for layer in cell["layers"]:
            layer |= {"load": [[0] * 8] * 2, "load_steps": [0, 4], "drop_rate": None, "dead_experts": None}
    page = Page(write_report(results, tmp_path))
    assert "MaxVio over training" not in page.text
    assert not (tmp_path / "figures" / "gate-time.svg").exists()


def test_one_router_one_seed_one_expert_one_step(tmp_path):
    page = Page(write_report(make_results(["topk-softmax"], seeds=1, steps=1, num_layers=1, num_experts=1), tmp_path))
    assert "topk-softmax: 2.41" in page.text


def test_comparison_of_two_runs(tmp_path):
    # a seed that is hard for one router alone; b is 0.1 lower for topk-softmax, the same for random
    before = {("topk-softmax", 0): 2.4, ("topk-softmax", 1): 3.4, ("random", 0): 3.5, ("random", 1): 3.6}
    after = {cell: score - 0.1 * (cell[0] != "random") for cell, score in before.items()}
    a = small(["topk-softmax", "attention", "random"], scores=before)
    b = small(["topk-softmax", "random"], seeds=3, scores=after)
    b["config"]["attention"] = "lfa"
    page = Page(write_comparison(a, b, tmp_path, ("plain", HOSTILE)))
    text = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    for said in (
        "of 2 routers 1 clearly better, 0 clearly worse",
        "Only in plain: attention",
        "−0.100\u00a0±\u00a00.000",
    ):
        assert said in page.text
        assert said in text
    assert "| attention | plain |" in text
    # shared seeds 0 and 1 alone: (2.4 + 3.4)/2 and 0.1 less
    assert "| topk-softmax | 2.900 | 2.800 |" in text
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert (tmp_path / "figures" / "comparison.png").is_file()


def test_comparison_says_why_a_gate_is_not_in_it(tmp_path):
    a, b = (small(["topk-softmax", "soft-moe", "random"]) for _ in range(2))
    for cell in [*a["cells"][2:4], *b["cells"][2:4]]:
        cell |= {"val_bits_per_byte": None, "as_trained_bits_per_byte": 1.5}
    text = Page(write_comparison(a, b, tmp_path, ("old", "new"))).text
    assert "of 2 routers (1 more cannot be compared) 0 clearly better" in text
    assert "Not compared: soft-moe (not scored: no causal form)." in text
    assert "| soft-moe | – | – | – (not scored: no causal form) |" in (tmp_path / "comparison.md").read_text()


def test_the_headline_of_a_comparison_counts_what_holds_all_at_once(tmp_path):
    # 4 gates, 2 seeds: the table's own intervals call one of them worse, those for 4 comparisons do not
    names = ["topk-softmax", "attention", "expert-choice", "random"]
    before = {(name, seed): 2.4 for name in names for seed in range(2)}
    after = before | {("attention", 0): 2.435, ("attention", 1): 2.435, ("random", 0): 2.38, ("random", 1): 2.42}
    page = write_comparison(small(names, scores=before), small(names, scores=after), tmp_path, ("old", "new"))
    # random leaves ±0.01 over in each of its 4 cells: σ² = 4 · 0.01²/4, so σ = 0.01; t(4) = 2.78 alone, 4.31 of four
    text = Page(page).text
    assert "+0.035\u00a0±\u00a00.028" in text
    assert "of 4 routers 0 clearly better, 0 clearly worse" in text
    assert "headline widens them for the number of routers it counts (Bonferroni)" in text


def test_comparison_says_what_cannot_be_compared(tmp_path):
    a, b = small(), small(["dense"])
    b["config"]["text"]["sha256"] = "1" * 64
    text = Page(write_comparison(a, b, tmp_path, ("run", "run"))).text
    assert "run A and run B share no finished router and seed" in text
    assert "different text: their bits per byte cannot be compared" in text


def test_importing_the_report_imports_neither_matplotlib_nor_jinja2():
    code = "import sys, gatelab.bench.report; print({'matplotlib', 'jinja2', 'scipy.optimize'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
