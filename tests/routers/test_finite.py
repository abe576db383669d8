"""NaN and inf in the hidden states are found, whichever tensor is looked at for them."""

import pytest
import torch
from torch.nn import functional as F

import gatelab
from gatelab.routers.score import LinearScore
from gatelab.routers.select import TopK

D, E = 8, 4


class Capped(LinearScore):
    """Logits that hide infinities, with parameters that it expects in the gate's dtype."""

    def forward(self, ctx):
        return F.linear(ctx.hidden_TD, self.weight).tanh()


def routers():
    return [
        gatelab.Router(score=score(D, E), select=TopK(2), balance=[gatelab.routers.balance.SwitchLoss(0.01)])
        for score in (LinearScore, Capped)
    ]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("router", routers(), ids=["linear", "capped"])
def test_they_are_found(router, dtype, value):
    router = router.to(dtype)
    hidden = torch.ones(3, D, dtype=dtype)
    router(hidden)
    hidden[1, 5] = value
    with pytest.raises(ValueError, match="holds 1 NaN or inf, the first at token 1"):
        router(hidden)


def test_weights_of_zero_do_not_hide_infinity():
    router = routers()[0]
    torch.nn.init.zeros_(router.score.weight)
    hidden = torch.ones(3, D)
    hidden[2, 0] = torch.inf
    with pytest.raises(ValueError, match="the first at token 2"):
        router(hidden)


def test_masked_tokens_may_hold_anything():
    router, hidden, mask = routers()[0], torch.ones(3, D), torch.tensor([True, False, True])
    hidden[1] = torch.nan
    assert router(hidden, token_mask=mask).tokens_per_expert.sum() == 4


def test_finite_hidden_states_whose_logits_have_no_finite_sum_are_not_blamed():
    # Two experts at +3e38 and two at −3e38 a token: finite logits, whose sum over 3 tokens passes through inf.
    router = routers()[0]
    with torch.no_grad():
        router.score.weight.zero_()[:, 0] = torch.tensor([1.0, 1.0, -1.0, -1.0])
    hidden = torch.zeros(3, D)
    hidden[:, 0] = 3e38
    assert router(hidden).topk()[1].sort(1).values.tolist() == [[0, 1]] * 3


def test_a_large_gate_finds_them_too():
    # 1024 · 512 · 64 multiply-adds: another product, of the same numbers.
    router = gatelab.create_router("topk-softmax", 512, 64, 6)
    hidden = torch.randn(1024, 512, generator=torch.Generator().manual_seed(0))
    hidden[1000, 511] = torch.nan
    with pytest.raises(ValueError, match="the first at token 1000"):
        router(hidden)


def test_bfloat16_parameters_route_as_their_float32_values():
    reference = gatelab.create_router("topk-softmax", 512, 64, 6).to(torch.bfloat16).float()
    small = gatelab.create_router("topk-softmax", 512, 64, 6)
    small.load_state_dict(reference.state_dict())
    small = small.to(torch.bfloat16)
    hidden = torch.randn(1024, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    torch.testing.assert_close(small(hidden).router_logits, reference(hidden.float()).router_logits)
    assert small(hidden).router_logits.dtype == torch.float32
