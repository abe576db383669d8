"""What torch's FLOP counter sees of our operators: the products that the reference does, no more and no fewer."""

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import gatelab
from gatelab import kernels

# 5 tokens of 3 choices, two of them −1: N = 13 of M = 15. D = 6, I = 4, J = 8.
IDS = torch.tensor([[0, 1, 2], [0, 2, -1], [1, 0, 2], [2, 1, 0], [0, 2, -1]])
FORWARD = 2 * 13 * 6 * (8 + 4)


def arguments(wanted):
    order, offsets = kernels.group_by_expert(IDS, 4)
    tensors = {
        "x_TD": torch.randn(5, 6),
        "weights": torch.rand(15),
        "up_proj": torch.randn(4, 8, 6),
        "down_proj": torch.randn(4, 6, 4),
    }
    for name in wanted:
        tensors[name].requires_grad_()
    return {**tensors, "token_index": order // 3, "expert_offsets": offsets}


def count(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("on_input", [False, True])
@pytest.mark.parametrize(
    ("wanted", "backward"),
    [
        (["x_TD", "weights", "up_proj", "down_proj"], 2 * FORWARD),
        (["up_proj", "down_proj"], FORWARD + 2 * 13 * 6 * 4),  # the weights, and back through down_proj
        (["x_TD"], FORWARD),
    ],
)
def test_the_cpu_backend_is_counted_forward_and_backward(wanted, backward, on_input):
    with kernels.use("cpu"):
        y_TD = None

        def forward():
            nonlocal y_TD
            y_TD = kernels.expert_mlp(**arguments(wanted), weights_on_input=on_input)

        assert count(forward) == FORWARD
        assert count(lambda: y_TD.sum().backward()) == backward


def test_both_backends_count_the_same():
    wanted = ["x_TD", "weights", "up_proj", "down_proj"]

    def step():
        kernels.expert_mlp(**arguments(wanted)).sum().backward()

    with kernels.use("cpu"):
        cpu = count(step)
    with kernels.use("reference"):
        assert count(step) == cpu == 3 * FORWARD


def test_without_data_the_count_is_the_most_it_can_be():
    with FakeTensorMode(allow_non_fake_inputs=True), kernels.use("cpu"):
        assert count(lambda: kernels.expert_mlp(**arguments([]))) == FORWARD // 13 * 15


@pytest.mark.parametrize("name", ["topk-softmax", "expert-choice", "balanced-assignment"])
def test_a_layer_is_counted_as_its_closed_form(name):
    moe = gatelab.MoE(gatelab.create_router(name, 16, 4, 2), gatelab.Experts(4, 16, 5))
    x = torch.randn(2, 8, 16)
    _, routing = moe(x)
    expected = moe.router.flops(16) + moe.experts.flops(int(routing.expert_offsets[-1]))
    assert count(lambda: moe(x)) == expected


def test_the_first_call_of_a_process_is_counted_too():
    script = """
import gatelab, torch
from torch.utils.flop_counter import FlopCounterMode
moe = gatelab.MoE(gatelab.create_router("topk-softmax", 16, 4, 2), gatelab.Experts(4, 16, 5))
with FlopCounterMode(display=False) as counter:
    moe(torch.randn(1, 8, 16))
print(counter.get_total_flops())
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(out.stdout) == 8 * 2 * 16 * 4 + 8 * 2 * 6 * 16 * 5
