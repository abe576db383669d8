"""A run that is killed, starved or meddled with: nothing finished is lost, nothing broken is read."""

import ctypes
import json
import multiprocessing
import random
import resource
import subprocess
import sys
import time

import pytest
import torch
from tiny import figures, quiet, tiny, write_text

from gatelab.bench import cell, files, workers
from gatelab.bench.checkpoint import Checkpoint
from gatelab.bench.compare import compare
from gatelab.bench.config import DEFAULT_ROUTERS
from gatelab.bench.errors import BadInput, CannotWrite
from gatelab.bench.matching import match
from gatelab.bench.rundir import opened
from gatelab.bench.train import Training
from gatelab.bench.workloads import load_text

# Forked from a server that has imported everything: a process costs milliseconds.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["gatelab.bench.compare", "pytest", "tiny", "torch._dynamo"])


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path / "text.txt")


def run_here(config, out, text):
    """In one process, with a checkpoint after every step."""
    workers.PROCESSES, cell.CHECKPOINT_SECONDS = 1, 0.0
    return compare(config, out, text=text, on_step=quiet)


def run_starved(config, out, text, limit, answer):
    """No file may grow beyond `limit` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        run_here(config, out, text)
    except CannotWrite as error:
        answer.put(str(error))


@pytest.mark.parametrize("name", [*DEFAULT_ROUTERS, "loss-free"])
def test_training_goes_on_from_its_checkpoint_to_the_bit(name, tmp_path, text):
    config, data = tiny(name), load_text(text, 16)
    checkpoint = Checkpoint(tmp_path / "x.pt", {"kind": "checkpoint", "schema": 1})
    whole, before, after = (Training(config, name, match(config, name).intermediate_size, 3, data) for _ in range(3))
    for _ in range(6):
        whole.advance()
    for _ in range(3):
        before.advance()
    checkpoint.write(before.state_dict())
    after.load_state_dict(checkpoint.read())
    for _ in range(3):
        after.advance()
    expected, found = whole.model.state_dict(), after.model.state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert figures({"cells": [after.result()]}) == figures({"cells": [whole.result()]})


def test_killed_at_random_it_ends_as_an_undisturbed_run_does(tmp_path, text):
    config = tiny("topk-softmax", "random", "balanced-assignment", steps=12)
    out, draw = tmp_path / "run", random.Random(0)
    undisturbed = run_here(config, tmp_path / "undisturbed", text)
    finished = {}
    for _ in range(5):
        seen = _progress(out)
        process = processes.Process(target=run_here, args=(config, out, text))
        process.start()
        while process.is_alive() and _progress(out) == seen:  # else a slow machine would never get anywhere
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.3))
        process.kill()
        process.join()
        cells = {path.name: path.read_bytes() for path in (out / "cells").glob("*.json")}
        assert finished.items() <= cells.items()  # what was finished stays, byte for byte
        finished = cells
    run_here(config, out, text)
    assert figures(json.loads((out / "results.json").read_text())) == figures(undisturbed)
    assert not list((out / "checkpoints").iterdir())


def _progress(out):
    return {path: path.stat().st_mtime_ns for path in (*out.glob("cells/*.json"), *out.glob("checkpoints/*.pt"))}


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, text):
    config, out = tiny("random", "dense", hidden_size=32), tmp_path / "run"
    answer = processes.SimpleQueue()
    run_here(tiny("random", hidden_size=32), tmp_path / "one", text)
    enough_for_one = (tmp_path / "one/cells/random-0.json").stat().st_size
    # A checkpoint is larger than a cell.
    process = processes.Process(target=run_starved, args=(config, out, text, 2 * enough_for_one, answer))
    process.start()
    process.join()
    assert not answer.empty(), "the starved run ended in another way"
    assert answer.get().startswith(f"cannot write {out}/checkpoints/random-0.pt: File too large; ")
    assert not list(out.rglob(f"{files.TEMPORARY}*"))
    run_here(config, out, text)


def _run_dir(tmp_path, text):
    config = tiny("random")
    run_here(config, tmp_path / "run", text)
    return config, tmp_path / "run"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("cells/random-0.json", b'{"kind": "cell", "sch', "is truncated or not JSON; delete it"),
        ("cells/random-0.json", b'{"val_bits_per_byte": 1}', "is no cell file of gatelab; delete it"),
        ("cells/random-0.json", b'{"kind": "cell", "schema": 2}', "has schema 2, newer than 1, the one known here"),
        ("cells/random-0.json", b'{"kind": "cell", "schema": 1, "run": "x"}', "belongs to another run; delete it"),
        ("cells/random-0.json", b"[" * 100_000, "is truncated or not JSON; delete it"),
        ("cells/random-0.json", b'{"kind": "cell", "schema": -3}', "is no cell file of gatelab; delete it"),
        ("run.json", b'{"kind": "run", "schema": -3}', "is no run file of gatelab; pass another --out"),
        ("run.json", b'{"kind": "run", "schema": true}', "is no run file of gatelab; pass another --out"),
        ("run.json", b'{"kind": "run", "schema": 1, "config": []}', "is damaged: it has no config"),
        ("cells/dense-0.json", b"{}", "is no file of this run; move it away"),
        ("notes.txt", b"mine", "is no file of this run; move it away"),
        ("run.json", b"{", "is truncated or not JSON; pass another --out"),
        ("run.json", b'{"kind": "run", "schema": 2}', "has schema 2"),
        ("results.json", b'{"kind": "results", "schema": 9}', "has schema 9"),
        ("checkpoints/random-0.pt", b"PK\x03\x04", "is truncated or no checkpoint of gatelab; delete it"),
    ],
)
def test_a_file_that_is_not_ours_is_named_and_refused(name, content, says, tmp_path, text):
    config, out = _run_dir(tmp_path, text)
    if name.startswith("checkpoints"):
        (out / "cells/random-0.json").unlink()
    (out / name).write_bytes(content)
    with pytest.raises(BadInput) as refused:
        run_here(config, out, text)
    assert str(refused.value).startswith(f"{out / name} ")
    assert says in str(refused.value)
    assert (out / name).read_bytes() == content


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (None, "is damaged: cell.router is missing, not text; delete it and its cell is trained again"),
        ({"layers": None}, "is damaged: cell.layers is null, not a list"),
        ({"val_bits_per_byte": "oops"}, "is damaged: cell.val_bits_per_byte is 'oops', not null or a number"),
        ({"seed": 7}, "holds the cell of random, seed 7; delete it"),
        ({"router": "dense"}, "holds the cell of dense, seed 0; delete it"),
    ],
)
def test_a_cell_with_our_signature_and_other_content_is_refused(changes, says, tmp_path, text):
    config, out = _run_dir(tmp_path, text)
    path = out / "cells/random-0.json"
    file = json.loads(path.read_text())
    file["cell"] = {} if changes is None else file["cell"] | changes
    path.write_text(json.dumps(file))
    with pytest.raises(BadInput) as refused:
        run_here(config, out, text)
    assert str(refused.value).startswith(f"{path} {says}")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (None, "it has no state"),
        ({"step": "x"}, "its state does not fit the cell"),
        ({"step": 99}, "its state does not fit the cell"),  # it would train for ever
        ({"seconds": None}, "its state does not fit the cell"),
        ({"model": {}}, "its state does not fit the cell"),
        ({"log": {}}, "its state does not fit the cell"),
    ],
)
def test_a_checkpoint_with_our_signature_and_other_content_is_refused(changes, says, tmp_path, text):
    config, data = tiny("random"), load_text(text, 16)
    training = Training(config, "random", 16, 0, data)
    training.advance()
    path, signature = tmp_path / "a.pt", {"kind": "checkpoint", "schema": 1}
    state = None if changes is None else training.state_dict() | changes
    torch.save(signature if state is None else {**signature, "state": state}, path)
    job = cell.Job(config, text, "random", 0, 16, Checkpoint(path, signature))
    with pytest.raises(BadInput, match=rf"a\.pt is damaged: {says}; delete it"):
        cell.run_cell(job, data, lambda step: None)


def test_a_checkpoint_of_another_cell_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    Checkpoint(path, {"kind": "checkpoint", "schema": 1, "seed": 0}).write({"step": 1})
    with pytest.raises(BadInput, match=r"a\.pt belongs to another run"):
        Checkpoint(path, {"kind": "checkpoint", "schema": 1, "seed": 1}).read()


def test_another_configuration_is_refused_by_what_differs(tmp_path, text):
    _, out = _run_dir(tmp_path, text)
    with pytest.raises(BadInput, match="holds a run with steps=6, this one has steps=7; pass another --out"):
        run_here(tiny("random", steps=7), out, text)


def test_another_text_is_another_configuration(tmp_path, text):
    config, out = _run_dir(tmp_path, text)
    text.write_text(text.read_text() + "# more\n")
    with pytest.raises(BadInput, match=r"holds a run with text\.train_bytes="):
        run_here(config, out, text)


def test_an_edited_gate_is_another_configuration(tmp_path, text):
    gate = tmp_path / "gate.py"
    gate.write_text("from gatelab.routers.recipes.baselines import random as Mine\n")
    config = tiny(f"{gate}:Mine")
    run_here(config, tmp_path / "run", text)
    gate.write_text(gate.read_text() + "# another\n")
    with pytest.raises(BadInput, match=r"holds a run with code\."):
        run_here(config, tmp_path / "run", text)


def test_leftovers_of_a_kill_are_swept_and_a_foreign_directory_is_not_touched(tmp_path, text):
    config, out = _run_dir(tmp_path, text)
    for place in (out, out / "cells", out / "checkpoints"):
        (place / f"{files.TEMPORARY}123-random-0.json").write_bytes(b"half a fi")
    run_here(config, out, text)
    assert not list(out.rglob(f"{files.TEMPORARY}*"))
    foreign = tmp_path / "home"
    foreign.mkdir()
    (foreign / "results.json").write_text("precious")
    with pytest.raises(BadInput, match=r"home/results\.json is there, but no run\.json"):
        run_here(config, foreign, text)
    assert [path.name for path in foreign.iterdir()] == ["results.json"]


def test_two_runs_cannot_hold_one_directory(tmp_path):
    with (
        opened(tmp_path / "run", {}, [("random", 0)]),
        pytest.raises(BadInput, match="is in use by another run"),
        opened(tmp_path / "run", {}, [("random", 0)]),
    ):
        pass


def test_workers_end_with_their_parent(tmp_path, text):
    config, out = tiny("random", "topk-softmax", steps=100_000), tmp_path / "run"
    process = processes.Process(target=compare, args=(config, out), kwargs={"text": text, "on_step": quiet})
    process.start()
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    while len(pids := _read(children).split()) < 2:
        time.sleep(0.05)
    process.kill()
    process.join()
    deadline = time.monotonic() + 30
    while any("gatelab.bench.workers" in _read(f"/proc/{pid}/cmdline") for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _read(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


# Root may write anywhere unless it gives up the capabilities that say so; a child that runs a program has lost them.
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, PR_CAPBSET_DROP = 1, 2, 24


def _gatelab_bound_by_permissions(*arguments):
    def drop():
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)

    command = [sys.executable, "-m", "gatelab", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=drop)


def test_a_read_only_directory_is_one_line_and_loses_nothing(tmp_path, text):
    tmp_path.chmod(0o555)
    command = ["compare", "--routers", "random", "--steps", "1", "--seeds", "1", "--text", text]
    ended = _gatelab_bound_by_permissions(*command, "--out", tmp_path / "run")
    tmp_path.chmod(0o755)
    assert ended.returncode == 2
    assert ended.stderr == f"gatelab: --out {tmp_path}/run cannot be written: Permission denied; pass another\n"


def test_a_read_only_report_is_one_line(tmp_path, text):
    _, out = _run_dir(tmp_path, text)
    out.chmod(0o555)
    ended = _gatelab_bound_by_permissions("report", out)
    elsewhere = _gatelab_bound_by_permissions("report", out, "--out", tmp_path / "elsewhere")
    out.chmod(0o755)
    assert (ended.returncode, ended.stderr) == (
        2,
        f"gatelab: cannot write {out}/figures: Permission denied; pass another --out\n",
    )
    assert elsewhere.returncode == 0
    assert (tmp_path / "elsewhere/report.html").exists()
