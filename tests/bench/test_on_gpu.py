"""Every gate and a tiny comparison on a GPU; run by `make gpu-check`."""

import json

import pytest
import torch
from click.testing import CliRunner

import gatelab
from gatelab.bench.commands.compare import compare
from gatelab.bench.speed import gate as gates
from gatelab.bench.speed.gate import fault

pytestmark = pytest.mark.gpu
SIZE = (2, 24, 32, 8, 2)  # B, S, D, E, K


@pytest.mark.parametrize("name", gatelab.list_routers())
def test_every_gate_forward_and_backward(name):
    torch.manual_seed(0)
    with torch.device("cuda"):
        gate = gates._create(name, SIZE)
        gate.router.cuda()
        x = torch.randn(SIZE[:3], requires_grad=True)
    routing = gate.route(x, training=True)
    assert fault(routing, gate.router) is None
    weights = getattr(routing, "combine_weights", None)
    loss = (routing.weights if weights is None else weights).square().sum() + routing.aux_loss
    if loss.requires_grad:
        loss.backward()
    gate.router.update([] if isinstance(routing, gatelab.SoftRouting) else [routing.summary()])
    gradients = [parameter.grad for parameter in gate.router.parameters() if parameter.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_a_tiny_comparison(tmp_path):
    text = tmp_path / "text"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 400)
    options = ["--steps", "4", "--seeds", "1", "--batch-size", "2", "--sequence-length", "32", "--device", "cuda"]
    sizes = ["--hidden-size", "32", "--num-layers", "1", "--num-heads", "2", "--num-experts", "4"]
    arguments = [
        "--routers",
        "topk-softmax,expert-choice",
        "--text",
        str(text),
        "--out",
        str(tmp_path / "run"),
        "--json",
    ]
    result = CliRunner().invoke(compare, [*arguments, *options, *sizes])
    assert result.exit_code == 0, result.output
    cells = json.loads(result.stdout)["cells"]
    assert {cell["router"] for cell in cells} == {"topk-softmax", "expert-choice"}
