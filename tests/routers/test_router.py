"""The pipeline: what parts see, what is refused, and in which words."""

import pytest
import torch

import gatelab
from gatelab import Context, Router, Selection
from gatelab.routers.balance import Balance
from gatelab.routers.score import LinearScore
from gatelab.routers.select import TopK


def linear(**kwargs):
    torch.manual_seed(0)
    return Router(**{"score": LinearScore(8, 4), "select": TopK(2), **kwargs})


class Shift(Balance):
    def adjust(self, scores, ctx):
        return scores - 1e3 * torch.tensor([1.0, 0, 0, 1.0])


def test_selection_sees_the_bias_and_weights_do_not():
    routing = linear(balance=[Shift()])(torch.randn(20, 8))
    weights, ids = routing.topk()
    assert set(ids.flatten().tolist()) == {1, 2}
    torch.testing.assert_close(weights, routing.router_logits.softmax(1).gather(1, ids))


def test_noise_reaches_scores_but_not_router_logits():
    class Flip(Balance):
        def perturb(self, logits, ctx):
            return -logits

    routing = linear(balance=[Flip()])(torch.randn(20, 8))
    torch.testing.assert_close(routing.scores, (-routing.router_logits).softmax(1))


def test_weights_apply_in_order():
    double, plus = (lambda g, valid, ctx: 2 * g), (lambda g, valid, ctx: g + 1)
    routing = linear(weight=[double, plus])(torch.randn(5, 8))
    _, ids = routing.topk()
    torch.testing.assert_close(routing.topk()[0], 2 * routing.scores.gather(1, ids) + 1)


def test_select_on_logits():
    # Sigmoid of 18, 19 and 20 is 1.0 three times in float32; the logits still differ.
    router = Router(score=LinearScore(1, 3), select=TopK(1), activation="sigmoid", select_on="logits")
    with torch.no_grad():
        router.score.weight.copy_(torch.tensor([[18.0], [20.0], [19.0]]))
    assert router(torch.ones(4, 1)).topk()[1].flatten().tolist() == [1] * 4


def test_keep_drops_after_weighing():
    def select(scores, ctx):
        ids = scores.topk(2).indices
        return Selection(ids, keep=torch.arange(2).expand_as(ids) == 0)

    routing = linear(select=select)(torch.randn(6, 8))
    assert routing.requested.sum() == 12
    assert routing.tokens_per_expert.sum() == 6


def test_plain_functions_are_parts():
    def score(ctx: Context):
        return ctx.hidden_TD[:, :3]

    router = Router(score=score, select=TopK(1), num_experts=3)
    x = torch.randn(7, 8)
    assert torch.equal(router(x).topk()[1][:, 0], x[:, :3].argmax(1))


def test_gate_dtype():
    x = torch.randn(200, 8).bfloat16()
    low, wide = linear(gate_dtype=torch.bfloat16), linear()
    expected = x @ wide.score.weight.bfloat16().T
    assert torch.equal(low(x).router_logits, expected.float())
    assert not torch.equal(wide(x).router_logits, expected.float())
    assert linear(gate_dtype=torch.float64)(x).weights.dtype == torch.float64


def test_scoring_ignores_autocast():
    x = torch.randn(20, 8)
    expected = linear()(x).router_logits
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear()(x).router_logits, expected)


def test_forced_ids_are_weighed_by_their_scores():
    forced = torch.tensor([[3, 0], [1, -1], [2, 1]])
    routing = linear()(torch.randn(3, 8), forced=forced)
    assert routing.topk()[1].tolist() == forced.tolist()
    expected = torch.where(forced >= 0, routing.scores.gather(1, forced.clamp(min=0)), 0)
    torch.testing.assert_close(routing.topk()[0], expected)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda r: r(torch.zeros(8)), r"hidden_states has shape \(8,\)"),
        (lambda r: r(torch.zeros(2, 5)), "5 features; the router was made for 8"),
        (lambda r: r(torch.zeros(2, 3, 8), token_mask=torch.ones(3, 2)), r"token_mask has shape \(3, 2\)"),
        (lambda r: r(torch.zeros(2, 3, 8), token_ids=torch.ones(6)), r"token_ids has shape \(6,\)"),
        (lambda r: r(torch.full((2, 8), torch.nan)), "16 NaN or inf, the first at token 0"),
        (lambda r: r(torch.full((2, 8), torch.inf)), "NaN or inf"),
        (lambda r: r(torch.zeros(2, 8), forced=torch.tensor([[0], [4]])), "ids from 0 to 4; use 0 to 3"),
        (lambda r: r(torch.zeros(2, 8), forced=torch.tensor([[1, 1], [0, 1]])), "twice"),
        (lambda r: r(torch.zeros(2, 8), forced=torch.zeros(3, 1)), r"forced has shape \(3, 1\)"),
        (lambda r: linear(select=TopK(5)), "top_k=5 does not fit num_experts=4"),
        (lambda r: linear(activation="tanh"), "activation='tanh' is unknown"),
        (lambda r: linear(select_on="gates"), "select_on='gates'"),
        (lambda r: Router(score=lambda ctx: ctx.hidden_TD, select=TopK(1)), "num_experts=None"),
    ],
)
def test_wrong_input_is_one_line_that_names_it(call, words):
    with pytest.raises(ValueError, match=words) as error:
        call(linear())
    assert "\n" not in str(error.value)


def test_large_finite_input_is_not_mistaken_for_inf():
    # The sum overflows float32; no entry does.
    assert linear()(torch.full((2, 8), 3e38) * torch.tensor([[1.0], [0.0]])).num_tokens == 2


def test_nan_propagates_under_compile():
    compiled = torch.compile(linear(), backend="eager", fullgraph=True)
    assert compiled(torch.full((2, 8), torch.nan)).router_logits.isnan().all()


@pytest.mark.parametrize("name", ["topk-softmax", "balanced-assignment"])
def test_recording_under_compile(name):
    torch._dynamo.reset()
    moe = gatelab.MoE(gatelab.create_router(name, 8, 4), gatelab.Experts(4, 8, 8))
    compiled = torch.compile(moe, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        with gatelab.record(moe) as tape:
            y, _routing = compiled(torch.randn(6, 8))
        assert len(tape.entries) == 1
        (y.sum() + tape.aux_loss).backward()
        gatelab.update_routers(tape)
