import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import figures, quiet, tiny, write_text

from gatelab.bench import workers
from gatelab.bench.compare import compare
from gatelab.bench.config import DEFAULT_ROUTERS


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path / "text.txt")


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """Starting a process costs more than such a run."""
    monkeypatch.setattr(workers, "PROCESSES", 1)


def test_default_routers_all_finish_and_results_json_holds_what_is_returned(tmp_path, text):
    results = compare(tiny(*DEFAULT_ROUTERS), tmp_path / "run", text=text, on_step=quiet)
    assert [cell["router"] for cell in results["cells"]] == list(DEFAULT_ROUTERS)
    assert json.loads((tmp_path / "run/results.json").read_text()) == results
    for cell in results["cells"]:
        assert 0 < cell["val_bits_per_byte"] < 9
        assert cell["history"]["step"] == [0, 1, 2, 3, 4, 5]
        # 2 layers; every step's loads add up to what the layer's tokens asked for
        assert [len(layer["load"]) for layer in cell["layers"]] == [6, 6]


def test_same_seed_gives_the_same_figures(tmp_path, text):
    first, second = (
        compare(tiny("random", "topk-softmax"), tmp_path / run, text=text, on_step=quiet) for run in ("a", "b")
    )
    assert figures(first) == figures(second)
    other = compare(tiny("random", "topk-softmax", first_seed=1), tmp_path / "c", text=text, on_step=quiet)
    assert figures(first)[0]["val_bits_per_byte"] != figures(other)[0]["val_bits_per_byte"]


def test_a_leaky_gate_is_scored_by_its_causal_fallback(tmp_path, text):
    results = compare(tiny("expert-choice", "topk-softmax"), tmp_path / "run", text=text, on_step=quiet)
    leaky, causal = results["cells"]
    assert leaky["as_trained_bits_per_byte"] != leaky["val_bits_per_byte"]
    assert causal["as_trained_bits_per_byte"] is None
    assert results["routers"]["expert-choice"]["fallback"] == "each token to the 2 experts that score it highest"
    assert results["routers"]["topk-softmax"]["fallback"] is None


def test_two_processes_give_the_same_figures_as_one(tmp_path, text, monkeypatch):
    config = tiny("random", "attention", "dense")
    alone = compare(config, tmp_path / "alone", text=text, on_step=quiet)
    monkeypatch.setattr(workers, "PROCESSES", 2)
    heard = []
    both = compare(config, tmp_path / "both", text=text, on_step=lambda *step: heard.append(step))
    assert figures(both) == figures(alone)
    assert {(router, step) for router, _, step in heard} >= {(name, 6) for name in config.routers}


def test_a_gate_without_finite_gradients_is_not_trained_and_spoils_nothing(tmp_path, text):
    (tmp_path / "gate.py").write_text(
        "import gatelab\n"
        "from gatelab.routers.score import LinearScore\n"
        "from gatelab.routers.select import TopK\n"
        "class Broken(LinearScore):\n"
        "    def forward(self, ctx):\n"
        "        z = super().forward(ctx)\n"
        "        if z.requires_grad:\n"
        "            z.register_hook(lambda gradient: gradient * float('nan'))\n"
        "        return z\n"
        "def Gate(hidden_size, num_experts, top_k=2):\n"
        "    return gatelab.Router(score=Broken(hidden_size, num_experts), select=TopK(top_k))\n"
    )
    results = compare(tiny("random", f"{tmp_path}/gate.py:Gate"), tmp_path / "run", text=text, on_step=quiet)
    assert [cell["skipped_steps"] for cell in results["cells"]] == [0, 6]
    assert results["cells"][1]["val_bits_per_byte"] < 10


def test_a_gate_without_a_causal_form_is_not_scored(tmp_path, text):
    results = compare(tiny("soft-moe"), tmp_path / "run", text=text, on_step=quiet)
    assert results["cells"][0]["val_bits_per_byte"] is None
    assert results["cells"][0]["as_trained_bits_per_byte"] < 10
    assert results["routers"]["soft-moe"]["fallback"].startswith("not at all")


PARENT = """
import sys
from pathlib import Path
from tiny import quiet, tiny
from gatelab.bench import compare, config
compare.run_cells = lambda *_: (cell for cell in ())
gates = tiny(*config.DEFAULT_ROUTERS, "remoe", batch_size=64)
compare.compare(gates, Path("run"), text=Path("text.txt"), on_step=quiet)
print({"numba", "torch._dynamo", "sympy", "matplotlib"} & set(sys.modules))
"""


def test_the_process_that_waits_for_its_workers_loads_neither_numba_nor_the_compiler(tmp_path, text):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", PARENT]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout == "set()\n"
