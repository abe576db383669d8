"""The tables of `gatelab speed --device cuda` and `make gpu-check`, as far as they go without a GPU."""

import json
import os
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

from gatelab.bench.commands.speed import speed, tables
from gatelab.bench.errors import BadInput
from gatelab.bench.speed import gpu_check, gpu_experts, gpu_gate, gpu_layer, gpu_race
from gatelab.bench.speed.contest import DENSE, OURS, Case

WHENCE = {"machine", "versions", "commit"}
FORWARD = Case(T=12, D=16, I=16, E=3, K=2, dtype=torch.bfloat16)
BACKWARD = Case(T=12, D=16, I=16, E=3, K=2, dtype=torch.bfloat16, backward=True)


@pytest.mark.parametrize("case", [FORWARD, BACKWARD])
def test_experts(case):
    rows = gpu_experts.run([case], device="cpu", rounds=1)
    assert [row["contestant"] for row in rows] == [gpu_experts.DENSE, OURS, gpu_experts.GROUPED_MM]
    assert rows[0]["share"] == 1
    for row in rows[1:]:
        assert 0 <= row["check"] < 0.02, row
    for row in rows:
        # 6 · 16 · 16 · 24 FLOPs, three times as many with a backward pass
        flops = 36864 * (3 if case.backward else 1)
        assert row["teraflops"] * row["milliseconds"] == pytest.approx(flops / 1e9)
        assert row.keys() >= WHENCE


def test_layer():
    rows = gpu_layer.run([FORWARD], device="cpu", rounds=1)
    assert [row["contestant"] for row in rows] == [DENSE, OURS, gpu_layer.GROUPED_MM]
    assert all(row["check"] < 0.02 and row["milliseconds"] > 0 for row in rows[1:])


def test_gate():
    rows = gpu_gate.run([(12, 16, 5, 2)], device="cpu", rounds=1)
    assert [row["contestant"] for row in rows[::2]] == [gpu_gate.COPY] * 4
    assert [row["check"] < 1e-2 for row in rows[1::2]] == [True] * 4
    # combine: 24 rows of 16 bfloat16, their weights and order, 12 sums
    assert rows[-1]["bytes"] == 24 * 32 + 24 * 12 + 12 * 32


def race(calls, checks):
    options = {"limit": "a", "work": 1, "rate": "r", "device": "cpu", "rounds": 2, "report": lambda row: None}
    return {row["contestant"]: row for row in gpu_race.race({}, calls, checks, **options)}


def test_nothing_wrong_is_timed():
    def full():
        raise torch.OutOfMemoryError("full")

    rows = race(dict.fromkeys("abc", lambda: None) | {"d": full}, {"a": "-", "b": 0.5, "c": float("nan"), "d": 0.0})
    assert rows["a"]["milliseconds"] > 0
    assert [rows[name]["milliseconds"] for name in "bcd"] == [None] * 3
    assert rows["d"]["check"] == "out of memory"


def test_distance():
    one, two = torch.ones(4), torch.full((4,), 1.5)
    assert gpu_race.distance([one, two], [one, one]) == 0.5  # ‖½·1‖ / ‖1‖
    assert not gpu_race.passes(gpu_race.distance([one, torch.full((4,), torch.nan)], [one, one]))
    assert gpu_race.distance([torch.arange(3)], [torch.arange(3)]) == 0
    assert not gpu_race.passes(gpu_race.distance([torch.arange(3)], [torch.tensor([0, 2, 1])]))


def test_a_wrong_answer_is_seen(monkeypatch):
    monkeypatch.setattr(gpu_experts, "ours", lambda x_TD, *rest: gpu_experts.grouped_mm(x_TD, *rest) * 1.1)
    rows = gpu_experts.run([FORWARD], device="cpu", rounds=1)
    assert rows[1]["check"] > 0.05
    assert rows[1]["milliseconds"] is None


def test_without_a_gpu():
    result = CliRunner().invoke(speed, ["--device", "cuda:99"])
    assert isinstance(result.exception, BadInput)
    assert "cuda:99 is not there" in str(result.exception)
    command = [sys.executable, gpu_check.__file__]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, env=hidden, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith("gpu-check: torch sees no CUDA device")
    assert run.stderr.count("\n") == 1
    assert run.stdout == ""


def test_what_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "find_spec", lambda name: None if name in ("rich", "pytest") else name)
    assert gpu_check.main([]) == 2
    assert "pytest, rich not installed" in capsys.readouterr().err


@pytest.mark.parametrize("failing", [None, "pytest", "gatelab"])
def test_tests_come_before_figures(monkeypatch, tmp_path, capsys, failing):
    commands = []

    def call(command, *, cwd, env, stdout):
        commands.append(command[2])
        assert (cwd, env["TRITON_INTERPRET"]) == (gpu_check.ROOT, "0")
        if stdout is not None:
            stdout.write(json.dumps({"experts": [{"contestant": "gatelab", "share": 0.5}]}))
        else:
            assert {p.rsplit("/", 1)[1] for p in command if p.endswith(".py")} >= {
                "test_gpu.py",
                "test_triton_on_gpu.py",
            }
        return int(command[2] == failing)

    monkeypatch.setattr(gpu_check, "obstacle", lambda: None)
    monkeypatch.setattr(gpu_check.subprocess, "call", call)
    assert gpu_check.main([str(tmp_path)]) == int(failing is not None)
    assert commands == (["pytest"] if failing == "pytest" else ["pytest", "gatelab"])
    assert (tmp_path / "speed.txt").exists() == (failing != "pytest")
    if failing != "pytest":  # what was measured before a failure is kept
        assert (tmp_path / "speed.txt").read_text() in capsys.readouterr().out + "\n"


def test_tables():
    assert tables({"a": [{"x": 0.5}], "b": []}) == "a\nx\n0.5\n\nb\nnothing was measured"
