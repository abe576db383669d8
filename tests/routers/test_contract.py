"""The contract suite over the whole registry: a new recipe is tested without writing a line."""

import pytest
import torch

import gatelab
from gatelab import testing

D, E = 16, 5
# Replay routes as many tokens as it recorded and no others: tests/routers/test_given.py has its tests.
NAMES = [name for name in gatelab.list_routers() if name != "replay"]


@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", NAMES)
def test_contract(name, check):
    check(lambda: gatelab.create_router(name, D, E))


# Soft MoE's one slot is a mixture of the whole sequence.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "soft-moe"])
def test_one_expert_is_the_plain_mlp(name):
    router = gatelab.create_router(name, D, 1).eval()
    batch = testing.make_batch(router, D)
    experts = gatelab.Experts(1, D, 8, zero_computation=router.zero_computation)
    y, routing = testing.route(gatelab.MoE(router, experts), batch)
    x, weight = batch.hidden.flatten(0, 1), routing.to_dense()[:, :1]
    if router.weights_on_input:
        x, weight = x * weight, 1.0
    gate, up = (x @ experts.gate_up_proj[0].T).chunk(2, dim=1)
    mlp = (torch.nn.functional.silu(gate) * up) @ experts.down_proj[0].T
    expected = weight * mlp
    if experts.zero_computation is not None:
        expected = expected + experts.zero_computation(x, routing)
    torch.testing.assert_close(y.flatten(0, 1), expected)
