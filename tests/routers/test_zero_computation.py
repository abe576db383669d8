"""Zero-computation experts, MoE++ and LongCat-Flash."""

import pytest
import torch

import gatelab
from gatelab import Experts, MoE, Routing
from gatelab.routers.balance import HeterogeneousLoss, ProportionalBias
from gatelab.routers.routing import Summary

D = 8


def dense_sum(experts: Experts, x: torch.Tensor, weights: torch.Tensor, on_input: bool = False) -> torch.Tensor:
    """Σ_e w_e · expert_e(x), one expert at a time, from the layer's own parameters."""
    zero = experts.zero_computation
    y = torch.zeros_like(x)
    for t in range(len(x)):
        c = 0
        for e in range(weights.shape[1]):
            w = weights[t, e]
            kind = "real" if e < experts.num_experts else zero.kinds[e - experts.num_experts]
            into = x[t] * w if on_input else x[t]
            if kind == "real":
                gate, up = (experts.gate_up_proj[e] @ into).chunk(2)
                out = experts.down_proj[e] @ (torch.nn.functional.silu(gate) * up)
            elif kind == "identity":
                out = into
            elif kind == "zero":
                out = torch.zeros_like(into)
            else:
                mix = (zero.mixers[c] @ into).softmax(0)
                out = mix[0] * into + mix[1] * zero.vectors[c]
                c += 1
            if w != 0:
                y[t] = y[t] + (out if on_input else w * out)
    return y


@pytest.mark.parametrize("on_input", [False, True])
def test_the_layer_equals_a_loop_over_tokens_and_experts(on_input):
    torch.manual_seed(0)
    kinds = ("constant", "identity", "zero", "identity", "constant")
    experts = Experts(3, D, 4, zero_computation=kinds)
    x = torch.randn(10, D)
    ids = torch.stack([torch.randperm(8)[:4] for _ in range(10)])
    weights = torch.rand(10, 4)
    routing = Routing.from_topk(ids, weights, 8, weights_on_input=on_input)
    expected = dense_sum(experts, x, routing.to_dense(), on_input)
    torch.testing.assert_close(experts(x, routing), expected)


def test_gradients_reach_constants_weights_and_inputs():
    experts = Experts(1, D, 4, zero_computation=("constant", "identity")).double()
    weights = torch.rand(5, 3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, D, dtype=torch.float64, requires_grad=True)
    ids = torch.arange(3).expand(5, 3)

    def layer(x, weights, vectors, mixers):
        tensors = {"zero_computation.vectors": vectors, "zero_computation.mixers": mixers}
        return torch.func.functional_call(experts, tensors, (x, Routing.from_topk(ids, weights, 3)))

    zero = experts.zero_computation
    assert torch.autograd.gradcheck(layer, (x, weights, zero.vectors, zero.mixers))


def test_tokens_that_do_not_come_may_hold_anything():
    experts = Experts(2, D, 4, zero_computation=("identity", "constant"))
    x = torch.randn(4, D)
    x[1:3] = torch.nan
    ids = torch.tensor([[2, 3], [2, 3], [-1, -1], [0, 2]])
    mask = torch.tensor([True, False, True, True])
    weights = torch.rand(4, 2, requires_grad=True)
    y = experts(x, Routing.from_topk(ids, weights, 4, token_mask=mask))
    assert bool(y.isfinite().all())
    assert not y[1:3].any()
    y.sum().backward()
    assert bool(weights.grad.isfinite().all())


def test_an_unknown_kind_and_a_gate_of_another_width_are_named():
    with pytest.raises(ValueError, match="'copy'"):
        Experts(2, D, 4, zero_computation=("copy",))
    layer = MoE(gatelab.create_router("longcat-flash", D, 4, 2), Experts(4, D, 4))
    with pytest.raises(ValueError, match="6 experts, the layer has 3 and 4"):
        layer(torch.randn(3, D))


@pytest.mark.parametrize("name", ["moe-plus-plus", "longcat-flash"])
def test_gate_and_layer_fit(name):
    router = gatelab.create_router(name, D, 4, 2)
    layer = MoE(router, Experts(4, D, 4, zero_computation=router.zero_computation))
    x = torch.randn(2, 3, D)
    y, routing = layer(x)
    assert routing.num_experts == 4 + len(router.zero_computation)
    expected = dense_sum(layer.experts, x.flatten(0, 1), routing.to_dense())
    torch.testing.assert_close(y.flatten(0, 1), expected)


class TestMoEPlusPlus:
    def test_the_score_and_the_residual_from_the_equations(self):
        torch.manual_seed(0)
        router = gatelab.create_router("moe-plus-plus", D, 4)
        x = torch.randn(5, D)
        first = router(x)
        s = router.score
        plain = torch.tanh(x @ s.first.T) @ s.second.T
        torch.testing.assert_close(first.router_logits, plain)
        second = router(x, previous=first)
        torch.testing.assert_close(second.router_logits, plain + first.router_logits @ s.residual.T)
        assert s.first.shape == (8 * 8, D)  # D → 8E → E with E = 4 + 4

    def test_gradients_flow_into_the_layer_before(self):
        before, after = (gatelab.create_router("moe-plus-plus", D, 4) for _ in range(2))
        x = torch.randn(5, D)
        after(x, previous=before(x)).weights.square().sum().backward()
        assert bool(before.score.first.grad.any())
        assert bool(after.score.residual.grad.any())

    def test_a_previous_routing_of_another_shape_is_refused(self):
        router = gatelab.create_router("moe-plus-plus", D, 4)
        with pytest.raises(ValueError, match=r"previous has logits of shape \(5, 4\)"):
            router(torch.randn(5, D), previous=gatelab.create_router("topk-softmax", D, 4)(torch.randn(5, D)))

    def test_weights_are_probabilities(self):
        routing = gatelab.create_router("moe-plus-plus", D, 4)(torch.randn(6, D))
        weights, ids = routing.topk()
        torch.testing.assert_close(weights, routing.router_logits.softmax(1).gather(1, ids))

    def test_the_loss_by_hand(self):
        # 2 real experts and 1 free one, τ = ½. Uniform p = 1/3 each; two tokens, k = 1, both to expert 0:
        # f = (1, 0, 0): Σ η f P = 1 · 1 · 1/3. Both to the free one: ½ · 1 · 1/3.
        part = HeterogeneousLoss(1.0, [1, 1, 0.5])
        for expert, expected in ((0, 1 / 3), (2, 1 / 6)):
            ctx = gatelab.Context(torch.zeros(1, 2, 1), num_experts=3)
            ctx.probabilities = torch.full((2, 3), 1 / 3)
            ctx.requested = torch.tensor([2 if e == expert else 0 for e in range(3)])
            assert float(part.losses(ctx)["heterogeneous"]) == pytest.approx(expected)

    def test_the_loss_is_least_in_proportion_to_one_over_cost(self):
        # f = K P with Σ P = 1: K Σ η P² is least at P ∝ 1/η, here (3, 3, 4)/10 for η = (1, 1, ¾): K/Σ(1/η) = .6 K.
        part = HeterogeneousLoss(1.0, [1, 1, 0.75])

        def loss(p: list[float]) -> float:
            ctx = gatelab.Context(torch.zeros(1, 100, 1), num_experts=3)
            ctx.probabilities = torch.tensor(p).expand(100, 3)
            ctx.requested = 2 * 100 * torch.tensor(p)
            return float(part.losses(ctx)["heterogeneous"])

        assert loss([0.3, 0.3, 0.4]) == pytest.approx(2 / (1 + 1 + 4 / 3))
        assert all(loss([0.3 - d, 0.3, 0.4 + d]) > loss([0.3, 0.3, 0.4]) for d in (-0.05, 0.05))


class TestLongCat:
    def published(self, E=6, Z=3, k=4):
        from transformers.models.longcat_flash.configuration_longcat_flash import LongcatFlashConfig
        from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashMoE

        config = LongcatFlashConfig(
            hidden_size=D, n_routed_experts=E, zero_expert_num=Z, moe_topk=k, expert_ffn_hidden_size=4, num_layers=1
        )
        config.num_experts_per_tok, config.num_local_experts = k, E
        block = LongcatFlashMoE(config)
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        return block

    @pytest.mark.parametrize(("E", "Z", "k"), [(6, 3, 4), (2, 4, 5)])  # also more choices than real experts
    def test_it_equals_transformers_block(self, E, Z, k):
        torch.manual_seed(0)
        block = self.published(E, Z, k)
        router = gatelab.create_router("longcat-flash", D, E, k, num_identity=Z)
        experts = Experts(E, D, 4, zero_computation=router.zero_computation)
        with torch.no_grad():
            block.router.e_score_correction_bias.copy_(0.05 * torch.randn(E + Z))
            router.score.weight.copy_(block.router.classifier.weight)
            router.balance[0].bias.copy_(block.router.e_score_correction_bias)
            experts.gate_up_proj.copy_(block.experts.gate_up_proj[:E])
            experts.down_proj.copy_(block.experts.down_proj)
        x = torch.randn(2, 7, D)
        y, routing = MoE(router, experts).eval()(x)
        _, weights, ids = block.router(x)
        dense = torch.zeros(14, E + Z).scatter(1, ids, weights)
        torch.testing.assert_close(routing.to_dense(), dense)
        torch.testing.assert_close(y, block(x))

    def test_choices_beyond_the_real_experts(self):
        # Of K = 5 choices Z = 2 can be identities, so at least 3 real ones; 2/3 · 5 = 3.3. Of 6 all 4 real ones.
        make = gatelab.create_router
        assert [make("longcat-flash", D, 4, k).balance[0].expected for k in (5, 6)] == [pytest.approx(10 / 3), 4]
        assert make("longcat-flash", D, 8, 6, num_identity=1).balance[0].expected == 5
        with pytest.raises(ValueError, match="top_k=7 does not fit num_experts=6"):
            make("longcat-flash", D, 4, 7)
        with pytest.raises(ValueError, match="top_k=5 does not fit num_experts=4"):
            make("longcat-flash", D, 4, 5, num_identity=0)
        routing = make("moe-plus-plus", D, 1, 3)(torch.randn(6, D))
        assert bool((routing.experts_per_token == 3).all())

    def test_the_step_by_hand(self):
        # N = 2 real of E = 3, K = 2, K_e = 1: aim K_e/(K N) = ¼. T = 10, loads (10, 2, 8): shares of K T = 20 are
        # ½, 1/10. Misses −¼, +3/20; μ = 4: −1, +.6; the free expert keeps 0.
        part = ProportionalBias(3, 2, rate=4.0, num_real=2, expected=1.0)
        load = torch.tensor([10.0, 2, 8])
        part.update([Summary(load, load, torch.tensor(10.0), {})])
        torch.testing.assert_close(part.bias, torch.tensor([-1, 0.6, 0]))

    def test_the_controller_holds_the_budget(self):
        torch.manual_seed(0)
        router = gatelab.create_router("longcat-flash", 12, 8, 3, num_identity=4, bias_rate=0.1)
        with torch.no_grad():
            router.score.weight.copy_(torch.eye(12))
        offset = torch.cat([torch.randn(8), torch.full((4,), -2.0)])  # hardly any token would take an identity
        loads = []
        for _ in range(200):
            with gatelab.record(router) as tape:
                loads.append(router(torch.randn(1000, 12) + offset).tokens_per_expert[:8].double())
            gatelab.update_routers(tape)
        assert float(loads[0].sum()) / 1000 > 2.7
        last = loads[-1]
        assert abs(float(last.sum()) / 1000 - 2) < 0.05  # two thirds of 3
        assert float(last.max() / last.mean()) < 1.15

    def test_impossible_budgets_are_refused(self):
        with pytest.raises(ValueError, match="expected=5"):
            ProportionalBias(4, 2, 1.0, num_real=3, expected=5)
        with pytest.raises(ValueError, match="num_real=5"):
            ProportionalBias(4, 2, 1.0, num_real=5)
