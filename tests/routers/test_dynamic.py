"""Gates with a varying number of experts per token: top-p, ReLU, thresholds."""

import math

import pytest
import torch

import gatelab
from gatelab import Router
from gatelab.routers.balance import QuantileThreshold, SparsityLoss
from gatelab.routers.routing import Summary
from gatelab.routers.score import LinearScore
from gatelab.routers.select import Positive, TopP


def identity(name: str, E: int, *args, **options) -> Router:
    """The recipe with the hidden states as logits."""
    router = gatelab.create_router(name, E, E, *args, **options)
    with torch.no_grad():
        router.score.weight.copy_(torch.eye(E))
    return router


def step(router: Router, *batches: torch.Tensor) -> None:
    with gatelab.record(router.train()) as tape:
        for x in batches:
            router(x)
    gatelab.update_routers(tape)


class TestTopP:
    P = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5], [0.25, 0.25, 0.25, 0.25], [0.4, 0.35, 0.2, 0.05]])

    @pytest.mark.parametrize(
        ("p", "counts"),
        [
            (0.0, [1, 1, 1, 1]),
            (0.4, [1, 1, 2, 2]),  # .5 > .4; .25 + .25 > .4; .4 does not exceed .4 (float32 agrees with float32)
            (0.5, [2, 2, 3, 2]),  # .5 and .25 + .25 do not exceed .5
            (0.9, [3, 3, 4, 3]),  # .95; 1; .95
            (1.0, [4, 4, 4, 4]),  # nothing exceeds 1: all
        ],
    )
    def test_the_shortest_prefix_that_exceeds_p(self, p, counts):
        router = identity("dynamic-top-p", 4, threshold=p)
        p32 = float(torch.tensor(p))
        router.select.p = p32
        routing = router((self.P * 64).log())
        assert routing.experts_per_token.tolist() == counts

    def test_weights_are_the_probabilities_themselves(self):
        weights, ids = identity("dynamic-top-p", 4, threshold=0.6)(self.P.log()).topk()
        assert ids.tolist() == [[0, 1, -1], [3, 2, -1], [0, 1, 2], [0, 1, -1]]
        torch.testing.assert_close(weights, torch.tensor([[0.5, 0.3, 0], [0.5, 0.3, 0], [0.25] * 3, [0.4, 0.35, 0]]))

    def test_every_token_has_an_expert_whatever_the_rounding(self):
        router = identity("dynamic-top-p", 7, threshold=0.999999)
        assert bool((router(torch.randn(500, 7)).experts_per_token >= 1).all())

    def test_the_losses(self):
        # Uniform p: each Σ f P = 1/E, so Switch gives 1 · 0.01; entropy ln 4 · 1e-4.
        losses = identity("dynamic-top-p", 4)(torch.zeros(8, 4)).losses
        assert {name: float(value.detach()) for name, value in losses.items()} == pytest.approx(
            {"switch": 0.01, "entropy": 1e-4 * math.log(4)}
        )

    def test_top_k_cannot_be_asked_for(self):
        with pytest.raises(ValueError, match=r"top_k=2.*threshold"):
            gatelab.create_router("dynamic-top-p", 8, 4, 2)
        with pytest.raises(ValueError, match="p=-1"):
            TopP(-1)


class TestReMoE:
    def test_positive_logits_choose_and_weigh(self):
        z = torch.tensor([[1.0, -1, 0.5], [-1, -2, -3], [0, 0.1, 2]])
        routing = identity("remoe", 3)(z)
        torch.testing.assert_close(routing.to_dense(), z.clamp(min=0))
        assert routing.topk()[1].tolist() == [[0, 2], [-1, -1], [2, 1]]

    def test_the_loss_by_hand(self):
        # n = (1, 1, 2), K·T = 1 · 3: f = (1/3, 1/3, 2/3). Mean gates: (1, .1, 2.5)/3.
        # E Σ f P = 3 · (1/3 · 1/3 + 1/3 · .1/3 + 2/3 · 2.5/3) = 3 · (1 + .1 + 5)/9 = 6.1/3.
        z = torch.tensor([[1.0, -1, 0.5], [-1, -2, -3], [0, 0.1, 2]])
        loss = identity("remoe", 3, initial=0.5)(z).losses["sparsity"]
        torch.testing.assert_close(loss.detach(), torch.tensor(0.5 * 6.1 / 3))

    def test_at_perfect_balance_it_is_the_mean_row_sum(self):
        z = torch.eye(4)[:, [1, 2, 3, 0]] * torch.tensor([1.0, 2, 3, 4])[:, None]
        loss = identity("remoe", 4, initial=1.0)(z).losses["sparsity"]
        assert float(loss.detach()) == pytest.approx(2.5)

    def summary(self, chosen: int, tokens: int) -> Summary:
        load = torch.tensor([float(chosen), 0, 0, 0])
        return Summary(load, load, torch.tensor(float(tokens)), {})

    @pytest.mark.parametrize(("chosen", "expected"), [(30, 1.2), (10, 1 / 1.2), (20, 1.0)])
    def test_the_coefficient_follows_the_sparsity(self, chosen, expected):
        part = SparsityLoss(4, 2, initial=1e-3)  # K·T = 20
        part.update([self.summary(chosen, 10)])
        assert float(part.coefficient) == pytest.approx(1e-3 * expected)

    def test_micro_batches_are_counted_together(self):
        part = SparsityLoss(4, 2, initial=1e-3)
        part.update([self.summary(1, 5), self.summary(29, 10)])  # 30 of 30: exactly the aim, though neither alone is
        assert float(part.coefficient) == pytest.approx(1e-3)

    def test_the_coefficient_is_bounded(self):
        part = SparsityLoss(4, 2, factor=10.0)
        for _ in range(50):
            part.update([self.summary(30, 10)])
        assert float(part.coefficient) == 1.0
        for _ in range(50):
            part.update([self.summary(1, 10)])
        assert float(part.coefficient) == pytest.approx(1e-12)

    def test_training_reaches_the_aim(self):
        torch.manual_seed(0)
        router = gatelab.create_router("remoe", 8, 8, 1, initial=1e-3)
        weight = router.score.weight
        density = []
        for _ in range(70):
            x = torch.randn(256, 8) + 1  # a linear gate of centred inputs is positive half of the time, whatever λ
            with gatelab.record(router) as tape:
                routing = router(x)
            (tape.aux_loss - 0.01 * routing.to_dense().sum(1).mean()).backward()
            with torch.no_grad():
                weight -= 0.3 * weight.grad
            weight.grad = None
            gatelab.update_routers(tape)
            density.append(float(routing.experts_per_token.float().mean()))
        assert density[0] > 3
        assert 0.5 < sum(density[-30:]) / 30 < 1.5


class TestExpertThreshold:
    def test_the_first_batch_is_routed_by_top_k_and_seeds_the_thresholds(self):
        z = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
        router = identity("expert-threshold", 4, 1)
        first = router.train()(z)
        assert torch.equal(first.topk()[1], z.topk(1).indices)
        torch.testing.assert_close(first.topk()[0], z.topk(1).values.sigmoid())
        step(router, z)
        # 40 · 1/4 = 10 tokens exceed each threshold, so the same batch is perfectly balanced now.
        assert router(z).tokens_per_expert.tolist() == [10] * 4
        dense = torch.where(z > z.sort(0, descending=True).values[10], z.sigmoid(), 0)
        torch.testing.assert_close(router(z).to_dense(), dense)

    def test_the_moving_average(self):
        part = QuantileThreshold(2, 1, decay=0.75)

        def update(*values: tuple[float, float]) -> list[float]:
            part.update(
                [Summary(*[torch.zeros(2)] * 2, torch.ones(()), {"thresholds": torch.tensor(v)}) for v in values]
            )
            return part.thresholds.tolist()

        assert update((1.0, 2.0), (3.0, 2.0)) == [2, 2]  # the first step takes the mean of its micro-batches
        assert update((6.0, -2.0)) == [3, 1]  # .75 · 2 + .25 · 6 and .75 · 2 − .25 · 2

    def test_it_holds_its_aim_on_new_batches_and_no_token_sees_another(self):
        generator = torch.Generator().manual_seed(1)
        offset = torch.randn(8, generator=generator)
        router = identity("expert-threshold", 8, 2)
        for _ in range(5):
            step(router, torch.randn(2000, 8, generator=generator) + offset)
        routing = router(torch.randn(2000, 8, generator=generator) + offset)
        # 2000 · 2/8 = 500 per expert, ±19 by chance (√(2000 · ¼ · ¾)), as much again from the thresholds.
        assert int(routing.tokens_per_expert.max()) < 600
        assert int(routing.tokens_per_expert.min()) > 400
        assert router.guarantees.causal

    def test_with_every_expert_aimed_at_all_are_taken(self):
        router = identity("expert-threshold", 3, 3)
        for _ in range(3):
            step(router, torch.randn(9, 3))
        assert router(torch.randn(9, 3)).experts_per_token.tolist() == [3] * 9

    def test_wrong_decay(self):
        with pytest.raises(ValueError, match="decay=1"):
            QuantileThreshold(2, 1, decay=1)


def test_positive_may_choose_nothing():
    router = Router(score=LinearScore(4, 3), activation="relu", select=Positive())
    routing = router(torch.zeros(5, 4))
    assert int(routing.requested.sum()) == 0
    assert not routing.to_dense().any()
    assert not router.guarantees.dropless
