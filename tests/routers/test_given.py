"""Gates that are told where tokens go: oracle and replay."""

import pytest
import torch

import gatelab
from gatelab import testing

D, E = 16, 5


def recorded(name="topk-softmax", masked=False, **options):
    router = gatelab.create_router(name, D, E, **options)
    batch = testing.make_batch(router, D, masked=masked)
    return testing.route(router, batch), batch


def same_assignments(a, b):
    a, b = a.compact(), b.compact()
    for name in ("token_index", "expert_offsets", "choice"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


class TestOracle:
    def test_labels_own_their_experts(self):
        router = gatelab.create_router("oracle", D, 6, 2)
        labels = torch.tensor([0, 1, 2, 3, 5])
        weights, ids = router(torch.zeros(5, D), labels=labels).topk()
        assert ids.tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [4, 5]]  # (2 l + j) mod 6
        assert bool((weights == 0.5).all())

    def test_one_expert_per_label_and_padding_goes_nowhere(self):
        router = gatelab.create_router("oracle", D, 4)
        labels = torch.tensor([[3, 1, -100], [0, 7, 2]])
        mask = labels >= 0
        routing = router(torch.zeros(2, 3, D), labels=labels, token_mask=mask)
        assert routing.topk()[1].flatten().tolist() == [3, 1, -1, 0, 3, 2]

    def test_without_labels_it_says_so(self):
        with pytest.raises(ValueError, match="labels are missing"):
            gatelab.create_router("oracle", D, E)(torch.zeros(3, D))


class TestReplay:
    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize(
        "name", ["topk-softmax", "expert-choice", "remoe", "switch", "dense", "balanced-assignment"]
    )
    def test_it_routes_exactly_as_recorded(self, name, masked):
        routing, batch = recorded(name, masked)
        router = gatelab.create_router("replay", D, E, routing=routing)
        again = testing.route(router, batch)
        same_assignments(routing, again)
        assert torch.equal(again.to_dense(), routing.to_dense())
        assert not again.weights.requires_grad

    def test_a_saved_routing(self, tmp_path):
        routing, batch = recorded()
        routing.save(tmp_path / "r.npz")
        router = gatelab.create_router("replay", D, E, routing=tmp_path / "r.npz")
        assert torch.equal(testing.route(router, batch).to_dense(), routing.to_dense())

    def test_recomputed_weights_are_those_of_the_gate_on_the_recorded_experts(self):
        routing, batch = recorded()
        router = gatelab.create_router("replay", D, E, routing=routing, weights="recomputed", base="topk-softmax")
        again = testing.route(router, batch)
        same_assignments(routing, again)
        _, ids = routing.topk()
        expected = again.router_logits.gather(1, ids).softmax(1)
        torch.testing.assert_close(again.topk()[0], expected)
        again.to_dense().square().sum().backward()
        assert bool(router.score.weight.grad.any())

    def test_with_the_same_parameters_the_recomputed_weights_are_the_recorded_ones(self):
        torch.manual_seed(0)
        source = gatelab.create_router("mixtral", D, E)
        batch = testing.make_batch(source, D)
        routing = testing.route(source, batch)
        router = gatelab.create_router("replay", D, E, 2, routing=routing, weights="recomputed", base="mixtral")
        router.load_state_dict(source.state_dict())
        # Weighed part by part here, in one pass there: exponentials differ in the last bit.
        torch.testing.assert_close(testing.route(router, batch).to_dense(), routing.to_dense(), rtol=1e-6, atol=0)

    def test_a_layer_under_identical_routing(self):
        routing, batch = recorded()
        experts = gatelab.Experts(E, D, 8)
        expected = experts(batch.hidden.flatten(0, 1), routing)
        moe = gatelab.MoE(gatelab.create_router("replay", D, E, routing=routing), experts)
        torch.testing.assert_close(moe(batch.hidden)[0].flatten(0, 1), expected)

    def test_another_routing_can_be_set(self):
        first, batch = recorded()
        second, _ = recorded("dense")
        router = gatelab.create_router("replay", D, E, routing=first)
        testing.route(router, batch)
        router.select.routing = second
        same_assignments(second, testing.route(router, batch))

    def test_stateful_gates_replay_without_moving_prices(self):
        routing, batch = recorded()
        router = gatelab.create_router("replay", D, E, routing=routing, weights="recomputed", base="quantile-balancing")
        before = router.balance[0].prices.clone()
        with gatelab.record(router) as tape:
            testing.route(router, batch)
        gatelab.update_routers(tape)
        assert torch.equal(router.balance[0].prices, before)

    def test_what_does_not_fit_is_named(self):
        routing, batch = recorded()
        router = gatelab.create_router("replay", D, E, routing=routing)
        with pytest.raises(ValueError, match=r"\(T, E\) = \(33, 5\); this call has \(7, 5\)"):
            router(torch.zeros(7, D))
        with pytest.raises(ValueError, match="routing is missing"):
            testing.route(gatelab.create_router("replay", D, E), batch)
        with pytest.raises(ValueError, match="top_k=2"):
            gatelab.create_router("replay", D, E, 2, routing=routing)
        with pytest.raises(ValueError, match="weights='other'"):
            gatelab.create_router("replay", D, E, routing=routing, weights="other")
        with pytest.raises(ValueError, match="no option 'bias'"):
            gatelab.create_router("replay", D, E, routing=routing, bias=True)

    def test_it_describes_itself_without_a_recording(self):
        assert "recorded Routing" in str(gatelab.describe_router("replay"))
