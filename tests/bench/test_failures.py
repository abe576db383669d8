"""A cell that fails is one line; the others go on, the report says why, and the same command tries it again."""

import json
import sys

import pytest
import torch
from results_factory import make_results
from tiny import TINY, figures, quiet, tiny, write_text

from gatelab.bench import cli, workers
from gatelab.bench.compare import compare
from gatelab.bench.config import flag
from gatelab.bench.errors import told
from gatelab.bench.report.run import Run
from gatelab.bench.report.summary import summarise

# Gradients are wanted in training alone: describing a gate, and scoring it, goes well.
GATE = """
import os, pathlib, torch
import gatelab
from gatelab.routers.score import LinearScore
from gatelab.routers.select import TopK

class Score(LinearScore):
    def forward(self, ctx):
        logits = super().forward(ctx)
        if torch.is_grad_enabled():
            {fault}
        return logits

def Gate(hidden_size, num_experts, top_k=2):
    return gatelab.Router(score=Score(hidden_size, num_experts), select=TopK(top_k))
"""
NAN = "logits = logits * float('nan')"
RAISES = "raise RuntimeError('lost\\nits way' + 1000 * ' again')"
KILLED = "os.kill(os.getpid(), 9)"


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path / "text.txt")


def gate(path, fault):
    path.write_text(GATE.format(fault=fault))
    return f"{path}:Gate"


def test_the_other_cells_go_on_and_the_failure_is_told(tmp_path, text, monkeypatch):
    monkeypatch.setattr(workers, "PROCESSES", 1)
    nan, raises = gate(tmp_path / "nan.py", NAN), gate(tmp_path / "raises.py", RAISES)
    heard = []
    exits = gate(tmp_path / "exits.py", "raise SystemExit(3)")
    config = tiny("random", nan, "dense", raises, exits, seeds=2)
    results = compare(config, tmp_path / "run", text=text, on_step=quiet, on_failure=heard.append)
    assert [(cell["router"], cell["seed"]) for cell in results["cells"]] == [
        *(("random", 0), ("dense", 0), ("random", 1), ("dense", 1))
    ]
    assert results["failures"] == heard
    assert [(failure["router"], failure["seed"]) for failure in heard] == [
        *((nan, 0), (raises, 0), (exits, 0), (nan, 1), (raises, 1), (exits, 1))
    ]
    assert "NaN" in heard[0]["reason"]
    assert heard[1]["reason"].startswith("RuntimeError: lost its way again again")
    assert heard[1]["reason"].endswith(f" … ({tmp_path}/raises.py, line 11)")
    assert heard[2]["reason"] == f"SystemExit: 3 ({tmp_path}/exits.py, line 11)"
    assert all("\n" not in failure["reason"] and len(failure["reason"]) < 600 for failure in heard)
    assert json.loads((tmp_path / "run/results.json").read_text()) == results
    assert len(list((tmp_path / "run/cells").iterdir())) == 4


def test_a_worker_that_is_killed_is_replaced_and_its_cell_tried_again_by_the_same_command(tmp_path, text, monkeypatch):
    monkeypatch.setattr(workers, "PROCESSES", 2)
    marker = tmp_path / "killed"
    once = f"if not (marker := pathlib.Path({str(marker)!r})).exists(): marker.touch(); {KILLED}"
    config = tiny("random", gate(tmp_path / "gate.py", once), "dense")
    first = compare(config, tmp_path / "run", text=text, on_step=quiet)
    assert [cell["router"] for cell in first["cells"]] == ["random", "dense"]
    assert [failure["reason"] for failure in first["failures"]] == [
        "its process was killed by signal 9, perhaps for want of memory"
    ]
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run/cells").iterdir()}
    again = compare(config, tmp_path / "run", text=text, on_step=quiet)
    assert again["failures"] == []
    assert figures(again)[::2] == figures(first)
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in (tmp_path / "run/cells").iterdir()}.items()


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_the_command_says_so_and_exits_with_1(options, tmp_path, text, monkeypatch, capsys):
    monkeypatch.setattr(workers, "PROCESSES", 1)
    monkeypatch.chdir(tmp_path)
    gate(tmp_path / "gate.py", RAISES)
    sizes = [part for name, value in (TINY | {"seeds": 2}).items() for part in (flag(name), str(value))]
    command = ["gatelab", "compare", *sizes, "--routers", "random,gate.py:Gate", "--text", str(text), "--out", "run"]
    monkeypatch.setattr(sys, "argv", [*command, *options])
    with pytest.raises(SystemExit) as ended:
        cli.run()
    out, err = capsys.readouterr()
    assert ended.value.code == 1
    lines = [line for line in err.splitlines() if line.startswith("gatelab: ")]
    assert len(lines) == 3
    assert all(lines[i].startswith(f"gatelab: gate.py:Gate, seed {i}: RuntimeError: lost its way") for i in range(2))
    assert lines[2] == ("gatelab: 2 of 4 cells failed, see above or run/report.html; the same command tries them again")
    assert "Traceback" not in err
    if options:
        assert [failure["seed"] for failure in json.loads(out)["failures"]] == [0, 1]
    else:
        assert out == "run/report.html\n"
    report = (tmp_path / "run/report.md").read_text()
    assert "Failed: gate.py:Gate (seeds 0 and 1): RuntimeError: lost its way" in report
    assert "| gate.py:Gate | – (0 of 2 seeds, 2 failed) |" in report
    assert "Unfinished" not in report


def test_a_report_tells_failed_from_missing():
    results = make_results(["topk-softmax", "random"], seeds=3, steps=8)
    del results["cells"][-2:]
    results["failures"] = [{"router": "random", "seed": 2, "reason": "ValueError: x"}]
    warnings = summarise(Run(results)).warnings
    assert warnings[:2] == [
        "Failed: random (seed 2): ValueError: x.",
        "Unfinished: 4 of 6 cells are done. Missing: random (seed 1).",
    ]


def test_an_error_is_told_by_the_line_of_the_callers_code():
    with pytest.raises(RuntimeError) as raised:
        torch.nn.functional.linear(torch.zeros(2, 3), torch.zeros(4, 5))
    assert told(raised.value).startswith("RuntimeError: ")
    assert told(raised.value).endswith(f"({__file__}, line {raised.traceback[0].lineno + 1})")
