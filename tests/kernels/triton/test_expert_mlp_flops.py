"""What torch's FLOP counter sees of `expert_mlp` on the triton backend: what the reference does."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gatelab import kernels

# 5 tokens of 3 choices, two of them −1: N = 13 of M = 15. D = 6, I = 4, J = 8.
IDS = torch.tensor([[0, 1, 2], [0, 2, -1], [1, 0, 2], [2, 1, 0], [0, 2, -1]])
FORWARD = 2 * 13 * 6 * (8 + 4)


@pytest.mark.parametrize("on_input", [False, True])
def test_forward_and_backward(on_input):
    order, offsets = kernels.group_by_expert(IDS, 4)
    tensors = [torch.randn(shape).requires_grad_() for shape in ((5, 6), (15,), (4, 8, 6), (4, 6, 4))]
    x_TD, weights, up_proj, down_proj = tensors
    counts = []
    with kernels.use("triton"), FlopCounterMode(display=False) as counter:
        y_TD = kernels.expert_mlp(x_TD, order // 3, offsets, weights, up_proj, down_proj, weights_on_input=on_input)
        counts.append(counter.get_total_flops())
        y_TD.sum().backward()
        counts.append(counter.get_total_flops())
    assert counts == [FORWARD, 3 * FORWARD]
