"""The command line: bad input is one line and status 2, --json one document, help for everything."""

import json
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from tiny import TINY, write_text

import gatelab
from gatelab.bench import cli, workers
from gatelab.bench.cli import COMMANDS
from gatelab.bench.config import flag

SMALL = [part for name, value in TINY.items() for part in (flag(name), str(value))]


EXPLODES = """
import gatelab
class Gate(gatelab.Router):
    def __init__(self, hidden_size, num_experts, top_k=2):
        super().__init__(score=gatelab.routers.score.LinearScore(hidden_size, num_experts),
                         select=gatelab.routers.select.TopK(top_k))
    def forward(self, *args, **kwargs):
        raise RuntimeError("in forward")
"""


@pytest.fixture
def gatelab_command(monkeypatch, capsys, tmp_path):
    """Runs a command here; returns its status, stdout and stderr."""
    monkeypatch.setattr(workers, "PROCESSES", 1)
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text.txt")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gatelab", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.run()
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--routers", "topk-sotfmax"], "--routers: router 'topk-sotfmax' is unknown; did you mean topk-softmax"),
        (["--routers", "random,random"], "--routers names 'random' twice"),
        (["--routers", ","], "--routers is empty"),
        (["--routers", "no.py:Gate"], "--routers: router 'no.py:Gate' does not load: FileNotFoundError"),
        (["--routers", "exits.py:Gate"], "--routers exits.py:Gate: SystemExit: 3 ("),
        (
            ["--routers", "exits.py"],
            "--routers: router 'exits.py' is unknown; name the gate in the file too, as in exits.py:G",
        ),
        (
            ["--routers", "raises.py:Nope"],
            "--routers: router 'raises.py:Nope' does not load: AttributeError: raises.py has no N",
        ),
        (["--top-k", "5"], "--top-k 5 is more than --num-experts 4"),
        (["--steps", "0"], "--steps 0 must be at least 1"),
        (["--seeds", "0"], "--seeds 0 must be at least 1"),
        (["--steps", "many"], "Invalid value for '--steps': 'many' is not a valid integer."),
        (["--text", "missing.txt"], "--text missing.txt cannot be read: No such file or directory"),
        (["--text", ""], "Invalid value for '--text': it is empty; name a file or a directory."),
        (["--out", ""], "Invalid value for '--out': it is empty; name a file or a directory."),
        (["--text", "empty.txt"], "--text empty.txt holds no text"),
        (["--text", "short.txt"], "--text short.txt has 9 bytes to train on, a sequence needs 17"),
        (["--text", "hollow"], "--text hollow holds no text"),
        (["--out", "text.txt"], "--out text.txt cannot be written: Not a directory"),
        (["--out", "text.txt/below"], "--out text.txt/below cannot be written: Not a directory"),
        (["--device", "cpu:1"], "--device cpu:1 is unknown; choose cpu, cuda or cuda:N"),
        (["--device", "tpu"], "--device tpu is unknown; choose cpu, cuda or cuda:N"),
        (["--device", "cuda:99"], "--device cuda:99 is not there: torch sees"),
        (["--attention", "linear"], "--attention linear is unknown; choose one of plain, lfa"),
        (["--hidden-size", "10"], "--hidden-size 10 must be a multiple of 4"),
        (["--hidden-size", "4", "--intermediate-size", "1", "--routers", "attention"], "--routers: router 'attention'"),
        (["--learning-rate", "-1"], "--learning-rate -1.0 must be above 0 and at most 1"),
        (["--learning-rate", "0"], "--learning-rate 0.0 must be above 0 and at most 1"),
        (["--learning-rate", "nan"], "--learning-rate nan must be above 0 and at most 1"),
        (["--learning-rate", "1e30"], "--learning-rate 1e+30 must be above 0 and at most 1"),
        (["--learning-rate", "inf"], "--learning-rate inf must be above 0 and at most 1"),
        (["--steps", "9" * 30], f"--steps {'9' * 30} must be at most 16777216"),
        (["--seeds", "1000000"], "--seeds 1000000 must be at most 1000"),
        (["--seed", "9" * 300], f"--seed {'9' * 300} must lie within"),
        (["--hidden-size", "1000000"], "--hidden-size 1000000 needs 8.0e+12 numbers"),  # 2 layers · (4 D² + 3·4·32 D)
        (["--batch-size", "1000000"], "--batch-size 1000000 needs 4.1e+09 numbers"),  # 16·2·(2·16 + 4·16 + 32) each
        (["--num-heads", "-4"], "--num-heads -4 must be at least 1"),
        (["--routers", "raises.py:Gate"], "--routers raises.py:Gate: KeyError: 'what' ("),
        (["--routers", "explodes.py:Gate"], "--routers explodes.py:Gate: RuntimeError: in forward ("),
        (["--vary", "score=linear,lfa", "--routers", "random"], "--routers and --vary both say what to compare"),
        (["--stps", "1"], "No such option '--stps'"),
    ],
)
def test_bad_input_is_one_line_that_names_the_argument(arguments, says, gatelab_command, tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "hollow").mkdir()
    (tmp_path / "raises.py").write_text("def Gate(hidden_size, num_experts, top_k=2):\n    return {}['what']\n")
    (tmp_path / "exits.py").write_text("import sys; sys.exit(3)")
    (tmp_path / "explodes.py").write_text(EXPLODES)
    given = ["compare", *SMALL, "--routers", "random", "--text", "text.txt", "--out", "run", *arguments]
    status, out, err = gatelab_command(*given)
    assert status == 2
    assert out == ""
    assert err.startswith(f"gatelab: {says}")
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("backend", "says"),
    [("numba", "GATELAB_BACKEND='numba' is not a backend; choose one of"), ("triton", "the triton backend needs CUDA")],
)
def test_a_backend_that_cannot_be_used_is_bad_input(backend, says, gatelab_command, monkeypatch, tmp_path):
    monkeypatch.setattr("gatelab.kernels.triton.INTERPRETED", False)
    monkeypatch.setenv("GATELAB_BACKEND", backend)
    status, _, err = gatelab_command("compare", *SMALL, "--routers", "random", "--text", "text.txt", "--out", "run")
    assert status == 2
    assert err.startswith(f"gatelab: GATELAB_BACKEND {backend} cannot be used: {says}")
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_json_is_one_document_and_equals_results_json_on_resume_too(gatelab_command, tmp_path):
    # A gate that prints must not spoil the document.
    (tmp_path / "loud.py").write_text(
        "from gatelab.routers.recipes.baselines import random\n"
        "def Loud(hidden_size, num_experts, top_k=2):\n"
        "    print('hello')\n"
        "    return random(hidden_size, num_experts, top_k)\n"
    )
    given = ["compare", *SMALL, "--routers", "random,loud.py:Loud", "--text", "text.txt", "--out", "run", "--json"]
    status, out, err = gatelab_command(*given)
    assert status == 0
    assert json.loads(out) == json.loads((tmp_path / "run/results.json").read_text())
    assert "hello" in err
    assert gatelab_command(*given)[1] == out
    assert (tmp_path / "run/report.html").exists()


def test_report_renders_again_and_compares_two_runs(gatelab_command, tmp_path):
    for seed in (0, 1):
        given = ["compare", *SMALL, "--routers", "random", "--text", "text.txt", "--seed", seed, "--out", f"run{seed}"]
        assert gatelab_command(*given)[0] == 0
    (tmp_path / "run0/report.html").unlink()
    assert gatelab_command("report", "run0")[:2] == (0, "run0/report.html\n")
    assert gatelab_command("report", "run0", "run1", "--json")[:2] == (0, '{\n "page": "run1/comparison.html"\n}\n')
    assert (tmp_path / "run0/report.html").exists()
    status, _, err = gatelab_command("report", "run0", "--out", "text.txt")
    assert (status, err) == (2, "gatelab: cannot write text.txt/figures: Not a directory; pass another --out\n")
    status, _, err = gatelab_command("report", "nowhere")
    assert (status, err) == (
        2,
        "gatelab: nowhere/results.json cannot be read: No such file or directory; "
        "name the --out of a `gatelab compare`\n",
    )
    results = (tmp_path / "run1/results.json").read_text()
    (tmp_path / "run1/results.json").write_text(results.replace('"seeds": 1', '"seeds": 1e99'))
    status, _, err = gatelab_command("report", "run0", "run1")
    assert (status, err) == (
        2,
        "gatelab: run1/results.json is damaged: config.seeds is 1e+99, not a whole number from 1 to 1000; "
        "undo the edit, or give the run's `gatelab compare` again, which makes it anew\n",
    )
    # Reports are files of the run, so it goes on.
    given = ["compare", *SMALL, "--routers", "random", "--text", "text.txt", "--seed", "1", "--out", "run1"]
    assert gatelab_command(*given)[0] == 0
    assert (tmp_path / "run1/results.json").read_text() == results


def test_a_report_that_cannot_be_written_after_training_is_no_bad_input(gatelab_command, tmp_path):
    given = ["compare", *SMALL, "--routers", "random", "--text", "text.txt", "--out", "run"]
    assert gatelab_command(*given)[0] == 0
    shutil.rmtree(tmp_path / "run/figures")
    (tmp_path / "run/figures").touch()
    status, _, err = gatelab_command(*given)
    assert status == 1
    assert err == (
        "gatelab: cannot write run/figures: File exists; "
        "results.json is whole: `gatelab report DIR --out ELSEWHERE` renders it\n"
    )


def test_a_log_has_one_line_of_progress(gatelab_command):
    given = ["compare", *SMALL, "--routers", "random", "--text", "text.txt", "--out", "run"]
    assert "random, seed 0" in gatelab_command(*given)[2]


def test_list_shows_every_gate(gatelab_command):
    status, out, _ = gatelab_command("list")
    assert status == 0
    assert {line.split()[0] for line in out.splitlines()[1:-1]} == set(gatelab.list_routers())
    rows = json.loads(gatelab_command("list", "--json")[1])
    assert [row["name"] for row in rows] == gatelab.list_routers()
    assert "softmax_j(q_i k_j)" in gatelab_command("list", "attention")[1]
    assert gatelab_command("list", "zzz")[0] == 2


def test_flops_of_published_models(gatelab_command):
    assert "Mixtral-8x7B" in gatelab_command("flops")[1]
    assert json.loads(gatelab_command("flops", "mixtral-8x7b", "--json")[1])[0]["name"] == "Mixtral-8x7B"
    assert gatelab_command("flops", "mixtral-8x7b")[1].startswith("Mixtral-8x7B: 32 layers")
    status, _, err = gatelab_command("flops", "mixtrl")
    assert (status, err.count("\n")) == (2, 1)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_has_help_and_json(command, gatelab_command):
    status, out, _ = gatelab_command(command.name, "--help")
    assert status == 0
    assert "--json" in out
    assert all(parameter.help for parameter in command.params if parameter.param_type_name == "option")


def test_ctrl_c_is_one_line_and_the_same_command_goes_on(tmp_path):
    # 2 workers, in processes of their own
    text, out = write_text(tmp_path / "text.txt"), tmp_path / "run"
    small = [*SMALL, "--routers", "random,dense,topk-softmax", "--text", str(text), "--out", str(out)]
    command = [sys.executable, "-m", "gatelab", "compare", *small]
    # started in the background by a script, this process ignores Ctrl-C, and so would its children
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    while process.poll() is None and not list(out.glob("cells/*.json")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("cells/*.json")}
    assert process.returncode == 130
    assert err.rstrip("\n").rsplit("\n", 1)[-1] == "gatelab: stopped; nothing finished is lost"
    assert "Traceback" not in err
    subprocess.run(command, check=True, capture_output=True)
    assert finished.items() <= {path: path.stat().st_mtime_ns for path in out.glob("cells/*.json")}.items()
    assert len(json.loads((out / "results.json").read_text())["cells"]) == 3


def test_without_the_bench_packages_one_line_says_how_to_get_them():
    hide = "import sys; sys.modules['click'] = None\nfrom gatelab.__main__ import main\nmain()"
    ended = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "gatelab: click not installed; pip install 'gatelab[bench]'\n"


def test_a_factorial_of_parts(gatelab_command):
    arguments = ["--vary", "score=linear,lfa", "--hold", "select=topk", "--text", "text.txt", "--json", *SMALL]
    status, out, _ = gatelab_command("compare", *arguments)
    assert status == 0
    routers = [cell["router"] for cell in json.loads(out)["cells"]]
    assert routers == ["score=linear+select=topk", "score=lfa+select=topk"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--vary", "score=linear,sphere"], "score='sphere' is unknown; choose one of linear, attention"),
        (["--hold", "select=topk"], "--hold needs a --vary"),
    ],
)
def test_a_factorial_that_is_none(gatelab_command, arguments, says):
    status, out, err = gatelab_command("compare", *arguments)
    assert (status, out) == (2, "")
    assert f"gatelab: {says}" in err
