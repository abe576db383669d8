"""The four gates of the brief and the baselines: their mathematics, by hand and against independent oracles."""

import pytest
import torch
from torch.nn import functional as F

import gatelab


def gate(name, D=16, E=6, K=2, **kwargs):
    torch.manual_seed(0)
    return gatelab.create_router(name, D, E, K, **kwargs)


def set_logits(router, logits):
    """Make a linear gate answer `logits` (T, E) for the rows of the identity: D = T."""
    with torch.no_grad():
        router.score.weight.copy_(torch.as_tensor(logits).T)
    return torch.eye(len(logits))


class TestTopKSoftmax:
    def test_by_hand(self):
        # p ∝ (1, 2, 4, 1): the two largest are experts 2 and 1, weights 4/6 and 2/6.
        router = gate("topk-softmax", D=1, E=4)
        x = set_logits(router, torch.tensor([[1.0, 2.0, 4.0, 1.0]]).log())
        weights, ids = router(x).topk()
        assert ids.tolist() == [[2, 1]]
        torch.testing.assert_close(weights, torch.tensor([[4 / 6, 2 / 6]]))

    def test_softmax_then_topk_then_renormalise_is_topk_then_softmax(self):
        router, x = gate("topk-softmax"), torch.randn(50, 16)
        routing = router(x)
        top = routing.router_logits.topk(2)
        torch.testing.assert_close(routing.topk()[0], top.values.softmax(-1))
        plain = gate("topk-softmax", renormalize=False)(x)
        torch.testing.assert_close(plain.topk()[0], plain.router_logits.softmax(-1).gather(1, plain.topk()[1]))
        assert not torch.allclose(plain.topk()[0].sum(1), torch.ones(50))

    def test_equals_mixtral(self):
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

        torch.manual_seed(1)
        config = MixtralConfig(hidden_size=16, intermediate_size=12, num_local_experts=6, num_experts_per_tok=2)
        theirs = MixtralSparseMoeBlock(config)
        for p in theirs.parameters():
            torch.nn.init.normal_(p)
        moe = gatelab.MoE(gate("topk-softmax"), gatelab.Experts(6, 16, 12))
        moe.load_state_dict(
            {
                "router.score.weight": theirs.gate.weight,
                "experts.gate_up_proj": theirs.experts.gate_up_proj,
                "experts.down_proj": theirs.experts.down_proj,
            }
        )
        x = torch.randn(2, 5, 16)
        expected = theirs(x)
        expected = expected[0] if isinstance(expected, tuple) else expected
        torch.testing.assert_close(moe(x)[0], expected, rtol=1e-4, atol=1e-3)

    def test_one_expert_per_token_still_learns(self):
        router = gate("topk-softmax", K=1)
        router(torch.randn(9, 16)).weights.sum().backward()
        assert router.score.weight.grad.any()


class TestSwitchLoss:
    def loss(self, **kwargs):
        return gate("topk-softmax", switch_coefficient=1.0, **kwargs)

    def test_perfect_balance_is_one(self):
        # Each of 4 experts is one token's first choice, probabilities uniform but for ties: z = 0 gives P_i = 1/4,
        # and Σ f_i = 1, so E·Σ f_i P_i = 4 · 1/4 = 1 whatever the ties do. With K = 2 as well: f is a share.
        for K in (1, 2, 4):
            router = self.loss(D=4, E=4, K=K)
            x = set_logits(router, torch.zeros(4, 4))
            assert float(router(x).losses["switch"].detach()) == pytest.approx(1, abs=1e-6)

    def test_by_hand(self):
        # p = [[.5, .4, .1], [.3, .3, .4], [.1, .2, .7], [.8, .2, .0]] → first choices 0, 2, 2, 0: f = (.5, 0, .5),
        # P = (.425, .275, .3), E Σ f P = 3 (.2125 + .15) = 1.0875.
        router = self.loss(D=4, E=3, K=1)
        p = torch.tensor([[0.5, 0.4, 0.1], [0.3, 0.3, 0.4], [0.1, 0.2, 0.7], [0.8, 0.2, 1e-30]])
        x = set_logits(router, p.log())
        assert float(router(x).losses["switch"].detach()) == pytest.approx(1.0875, abs=1e-5)
        # The last token masked: f = (1/3, 0, 2/3), P = (.3, .3, .4): 3 (.1 + .8/3) = 1.1.
        masked = router(x, token_mask=torch.tensor([1, 1, 1, 0]))
        assert float(masked.losses["switch"].detach()) == pytest.approx(1.1, abs=1e-5)

    def test_z_loss(self):
        from gatelab.routers.balance import ZLoss

        router = gatelab.Router(
            score=gate("topk-softmax").score, select=gatelab.routers.select.TopK(2), balance=[ZLoss(0.5)]
        )
        # z = 0 over E = 6 experts: logsumexp = ln 6, so 0.5 · (ln 6)².
        loss = router(torch.zeros(3, 16)).losses["z"]
        assert float(loss.detach()) == pytest.approx(0.5 * 1.791759**2, rel=1e-5)


class TestAttention:
    def test_logits_from_the_equations(self):
        router, x = gate("attention"), torch.randn(7, 16)
        s = router.score
        q, k, v = (x.double() @ w.double().T for w in (s.query, s.key, s.value))
        z = torch.stack([(torch.outer(q[t], k[t]).softmax(1) @ v[t]) for t in range(7)])
        torch.testing.assert_close(router(x).router_logits.double(), z, rtol=1e-5, atol=1e-6)

    def test_weights_are_a_softmax_over_the_chosen_two(self):
        routing = gate("attention")(torch.randn(30, 16))
        weights, ids = routing.topk()
        torch.testing.assert_close(weights, routing.router_logits.gather(1, ids).softmax(1))

    def test_the_softmax_leaves_out_what_was_not_chosen(self):
        router, x = gate("attention"), torch.randn(2, 16)
        routing = router(x, forced=torch.tensor([[3, -1], [0, 2]]))
        # One expert alone has weight 1, whatever its logit.
        assert routing.topk()[0][0].tolist() == [1.0, 0.0]
        torch.testing.assert_close(routing.topk()[0][1], routing.router_logits[1, [0, 2]].softmax(0))

    def test_logits_lie_between_the_values(self):
        router, x = gate("attention"), torch.randn(30, 16)
        z, v = router(x).router_logits, F.linear(x, router.score.value)
        assert ((z >= v.amin(1, keepdim=True) - 1e-6) & (z <= v.amax(1, keepdim=True) + 1e-6)).all()

    def test_equal_queries_tie(self):
        router = gate("attention")
        with torch.no_grad():
            router.score.query[3] = router.score.query[1]
        z = router(torch.randn(9, 16)).router_logits
        torch.testing.assert_close(z[:, 3], z[:, 1])

    def test_zero_keys_give_the_mean_value_and_equal_values_tie(self):
        router, x = gate("attention"), torch.randn(9, 16)
        with torch.no_grad():
            router.score.key.zero_()
        z = router(x).router_logits
        torch.testing.assert_close(z, F.linear(x, router.score.value).mean(1, keepdim=True).expand_as(z))
        with torch.no_grad():
            router.score.value.copy_(router.score.value[:1].expand(6, 16).clone())
        z = router(x).router_logits
        torch.testing.assert_close(z, z[:, :1].expand_as(z))

    def test_permuting_experts_permutes_logits(self):
        router, x, order = gate("attention"), torch.randn(9, 16), torch.tensor([3, 1, 5, 0, 2, 4])
        z = router(x).router_logits
        with torch.no_grad():
            for weight in (router.score.query, router.score.key, router.score.value):
                weight.copy_(weight[order].clone())
        torch.testing.assert_close(router(x).router_logits, z[:, order])

    @pytest.mark.parametrize(("D", "E"), [(16, 6), (64, 32)])
    def test_cost(self, D, E):
        router = gate("attention", D=D, E=E)
        assert router.num_parameters == 3 * D * E
        assert router.flops(10) == 10 * (6 * D * E + 4 * E**2)

    def test_lfa_filters_queries_and_keys_but_not_values(self):
        router, x = gate("attention", lfa=True), torch.randn(2, 5, 16)
        s = router.score
        filtered = s.lfa(x).flatten(0, 1)
        q, k, v = F.linear(filtered, s.query), F.linear(filtered, s.key), F.linear(x.flatten(0, 1), s.value)
        torch.testing.assert_close(router(x).router_logits, gatelab.kernels.attention_gate(q, k, v))
        assert torch.equal(gate("attention-lfa")(x).router_logits, router(x).router_logits)


class TestExpertChoice:
    # scores of 3 tokens (rows) for 3 experts; C = 2
    SCORES = ((0.4, 0.0, 0.2), (0.5, 0.1, 0.4), (0.3, 0.2, 0.6))

    def routed(self, **kwargs):
        ctx = gatelab.Context(torch.zeros(1, 3, 1), num_experts=3)
        scores = torch.tensor(self.SCORES)
        selection = gatelab.routers.select.ExpertChoice(2, **kwargs)(scores, ctx)
        gates = scores.gather(1, selection.ids.clamp(min=0))
        return gatelab.Routing.from_topk(selection.ids, gates, 3, max_assignments=selection.max_assignments)

    def test_by_hand(self):
        # Columns: expert 0 takes tokens 1 (.5) and 0 (.4); expert 1 takes 2 (.2) and 1 (.1); expert 2 takes 2 (.6) and
        # 1 (.4). Token 0 has one expert, token 1 three, token 2 two; weights run from .1 to .6.
        routing = self.routed()
        assert routing.experts_per_token.tolist() == [1, 3, 2]
        assert routing.tokens_per_expert.tolist() == [2, 2, 2]
        assert routing.token_index.shape == (6,)  # no tail: E·C is known beforehand
        assert float(routing.weights.min()) == pytest.approx(0.1)
        assert float(routing.weights.max()) == pytest.approx(0.6)
        assert routing.topk()[1].tolist() == [[0, -1, -1], [0, 2, 1], [2, 1, -1]]

    @pytest.mark.parametrize(
        ("T", "E", "factor", "C"),
        [
            (8, 4, 2, 4),
            (7, 4, 2, 4),
            (50, 1, 1.1, 50),
            (100, 2, 1.1, 55),
            (1, 8, 2, 1),
            (3, 2, 5, 3),
            (500, 10, 1.1, 55),
        ],
    )
    def test_capacity_is_exact(self, T, E, factor, C):
        # min(T, max(1, ceil(T·cf/E))): 100·1.1/2 = 55 exactly, where floats give 55.00000000000001 and then 56.
        router = gate("expert-choice", D=4, E=E, K=1, capacity_factor=factor)
        assert router(torch.randn(T, 4)).tokens_per_expert.tolist() == [C] * E

    def test_masked_tokens_shrink_the_capacity(self):
        # Rows of 6 and 3 real tokens, E = 3, cf = 1: by row C = 2 and 1, over the batch C = 3.
        x, mask = torch.randn(2, 6, 4), torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])
        by_row = gate("expert-choice", D=4, E=3, K=1, group="sequence")(x, token_mask=mask)
        assert by_row.tokens_per_expert.tolist() == [3] * 3
        assert by_row.to_dense().view(2, 6, 3)[1].count_nonzero(0).tolist() == [1] * 3
        assert gate("expert-choice", D=4, E=3, K=1)(x, token_mask=mask).tokens_per_expert.tolist() == [3] * 3

    def test_sees_the_future(self):
        # What the docs warn of: a later token that scores higher takes an earlier one's place.
        router = gate("expert-choice", D=2, E=2, K=1)
        x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        before, after = router(x[:2]).to_dense(), router(torch.cat([x[:2], 9 * x[2:]])).to_dense()
        assert not torch.allclose(before, after[:2])


class TestBalancedAssignment:
    def test_maximises_the_sum_under_even_loads(self):
        from scipy.optimize import linear_sum_assignment

        router, x = gate("balanced-assignment", K=1), torch.randn(24, 16)
        routing = router(x)
        assert routing.tokens_per_expert.tolist() == [4] * 6
        z = routing.router_logits.detach().double()
        best = linear_sum_assignment(z.repeat_interleave(4, 1).numpy(), maximize=True)
        ours = z.gather(1, routing.topk()[1]).sum()
        assert float(ours) == pytest.approx(float(z.repeat_interleave(4, 1)[best].sum()), abs=1e-6)
        torch.testing.assert_close(routing.topk()[0], z.float().gather(1, routing.topk()[1]).sigmoid())

    def test_evaluation_subtracts_the_learned_prices(self):
        router, x = gate("balanced-assignment", K=1), torch.randn(2000, 16)
        with torch.no_grad():
            router.score.weight[0] += 0.5 * x.mean(0).sign()
            router.score.weight.mul_(2)
        x = x + 0.5 * x.mean(0).sign()
        greedy = router.eval()(x).tokens_per_expert.max()
        with gatelab.record(router.train()) as tape:
            router(x)
        gatelab.update_routers(tape)
        priced = router.eval()(x).tokens_per_expert
        # The dual prices make a plain argmax of s - p nearly the assignment itself: mean load 2000/6 = 333.
        assert priced.max() < 345 < greedy

    def test_groups(self):
        x = torch.randn(3, 12, 16)
        by_row = gate("balanced-assignment", K=1, group="sequence")(x).to_dense().view(3, 12, 6)
        assert (by_row.count_nonzero(1) == 2).all()
        with pytest.raises(ValueError, match="group='row'"):
            gate("balanced-assignment", group="row")


class TestBaselines:
    def test_dense_is_one_wide_mlp(self):
        moe = gatelab.MoE(gatelab.create_router("dense", 16, 4), gatelab.Experts(4, 16, 3))
        x = torch.randn(5, 16)
        gate_w, up_w = moe.experts.gate_up_proj.chunk(2, dim=1)
        h = F.silu(x @ gate_w.flatten(0, 1).T) * (x @ up_w.flatten(0, 1).T)
        torch.testing.assert_close(moe(x)[0], h @ moe.experts.down_proj.permute(1, 0, 2).flatten(1).T)

    def test_random_is_uniform_and_distinct(self):
        routing = gate("random", E=6, K=2)(torch.zeros(12000, 16))
        assert (routing.experts_per_token == 2).all()
        assert set(routing.weights.tolist()) == {0.5}
        # 24000 draws over 6: 4000 each, standard deviation √(12000 · 1/3 · 2/3) = 52; five of those are 258.
        assert (routing.tokens_per_expert - 4000).abs().max() < 258

    def test_round_robin(self):
        # K = 2, E = 3: token 0 → 0, 1; token 1 → 2, 0; token 2 → 1, 2; token 3 → 0, 1. Padding does not count.
        router = gate("round-robin", E=3, K=2)
        assert router(torch.zeros(4, 16)).topk()[1].tolist() == [[0, 1], [2, 0], [1, 2], [0, 1]]
        mask = torch.tensor([[0, 1, 0, 1, 1]])
        ids = router(torch.zeros(1, 5, 16), token_mask=mask).topk()[1]
        assert ids.tolist() == [[-1, -1], [0, 1], [-1, -1], [2, 0], [1, 2]]
