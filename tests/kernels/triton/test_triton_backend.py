"""When the triton backend runs, and what it says when it cannot."""

import os
import subprocess
import sys

import pytest
import torch

import gatelab.kernels.triton
from gatelab import kernels
from gatelab.kernels import backend

CALLS = {
    "attention_gate": "kernels.attention_gate(*torch.ones(3, 2, 4))",
    "expert_mlp": "kernels.expert_mlp(torch.ones(1, 2), torch.zeros(1).long(), torch.tensor([0, 1]), torch.ones(1), "
    "torch.ones(1, 4, 2), torch.ones(1, 2, 2))",
    "group_by_expert": "kernels.group_by_expert(torch.zeros(2, 1).long(), 2)",
    "local_filter": "kernels.local_filter(torch.ones(1, 1, 2), torch.ones(2, 1, 2), torch.ones(1), "
    "torch.ones(2, 2, 1), torch.ones(2), torch.ones(2))",
    "sinkhorn": "kernels.sinkhorn(torch.ones(2, 2))",
    "topk_gate": "kernels.topk_gate(torch.ones(2, 2), 1)",
}

REAL = {"requires_grad": True}
OPERATORS = {
    "attention_gate_triton": lambda: tuple(torch.randn(3, 4, **REAL) for _ in range(3)),
    "filter_norm_triton": lambda: (
        torch.randn(2, 3, 10, **REAL),
        torch.randn(2, 5, **REAL),
        torch.randn(2, 3, 5, **REAL),
        torch.randn(5, **REAL),
        1e-6,
    ),
    "filter_taps_triton": lambda: (torch.randn(2, 3, 4, **REAL), torch.randn(2, 2, **REAL), torch.ones(2, 3).bool()),
    "group_by_expert_triton": lambda: (torch.tensor([[0, 2], [-1, 1]]), 3),
    "sinkhorn_triton": lambda: (torch.randn(5, 4), None, 2),
    "topk_gate_triton": lambda: (
        *(torch.randn(5, 4, **REAL), torch.zeros(4), torch.ones(5).bool()),
        *(2, "sigmoid", False, 2, 1, True, True, 2.5),
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_keep_their_promises(name):
    with kernels.use("triton"):
        torch.library.opcheck(getattr(torch.ops.gatelab, name), OPERATORS[name]())


def last_lines(code: str, **environment: str) -> list[str]:
    """What a Python without the interpreter's variable prints for each line of `code`, or the error it raises."""
    script = "import torch\nfrom gatelab import kernels\n"
    for line in code.splitlines():
        script += f"try:\n    print({line} is not None)\nexcept Exception as e:\n    print(type(e).__name__, e)\n"
    outer = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "GATELAB_BACKEND")}
    run = subprocess.run([sys.executable, "-c", script], env=outer | environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


# The assignment solves on the CPU; a product and a choice are what the libraries of a GPU have.
LENT = {"balanced_assignment": "cpu", "router_logits": "reference", "topk": "reference", "topk_routing": "reference"}


def test_every_primitive_has_a_triton_version_but_those_lent():
    with kernels.use("triton"):
        pass
    homes = {name: function.__module__.split(".")[2] for name, function in backend._tables["triton"].items()}
    assert homes == {name: LENT.get(name, "triton") for name in backend.PRIMITIVES}


def test_tensors_on_the_cpu_need_the_interpreter():
    lines = last_lines("\n".join(CALLS.values()), GATELAB_BACKEND="triton")
    assert len(lines) == len(CALLS)  # one line each
    for line in lines:
        assert line.startswith("RuntimeError the triton backend needs CUDA tensors")
        assert "TRITON_INTERPRET=1" in line


def test_experts_are_built_on_the_cpu_before_they_move():
    code = "__import__('gatelab').Experts(2, 4, 4)"
    assert last_lines(code, GATELAB_BACKEND="triton") == ["True"]


def test_the_assignment_is_solved_on_the_cpu_all_the_same():
    code = "__import__('gatelab.kernels.backend').kernels.backend.implementation('balanced_assignment', 'cpu')"
    assert last_lines(code, GATELAB_BACKEND="triton") == ["True"]


def test_without_triton_the_extra_is_named():
    code = "__import__('sys').modules.update(triton=None)\nkernels.use('triton').__enter__()\n" + CALLS["sinkhorn"]
    _, forced, chosen = last_lines(code, GATELAB_BACKEND="triton")
    for line in (forced, chosen):
        assert line == "ImportError the triton backend needs Triton (Linux only): pip install 'gatelab[triton]'"


def test_check_device(monkeypatch):
    gatelab.kernels.triton.check_device("cuda")
    gatelab.kernels.triton.check_device("cpu")
    monkeypatch.setattr(gatelab.kernels.triton, "INTERPRETED", False)
    gatelab.kernels.triton.check_device("cuda")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        gatelab.kernels.triton.check_device("cpu")


def test_cuda_tensors_have_the_reference_until_a_gpu_has_been_seen(monkeypatch):
    monkeypatch.delenv("GATELAB_BACKEND", raising=False)
    assert backend.backend_for("cuda") == "reference"
    assert backend.backend_for("cpu") == "cpu"
    assert torch.equal(kernels.topk_gate(torch.tensor([[1.0, 2]]), 1).topk_ids, torch.tensor([[1]]))
