"""The contract suite has teeth: each promise, made falsely, is caught, and by the check that is there for it."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from gatelab import Context, Guarantees, Router, Selection, testing
from gatelab.routers.balance import Balance
from gatelab.routers.routing import Summary
from gatelab.routers.score import LinearScore
from gatelab.routers.select import RoundRobin, TopK

D, E = 16, 5


class Lying(Router):
    """A router whose promises are what it is told they are."""

    def __init__(self, lie: dict, **parts) -> None:
        super().__init__(**parts)
        self.lie = lie

    @property
    def guarantees(self) -> Guarantees:
        return replace(super().guarantees, **self.lie)


def lying(select: Callable | None = None, balance: Sequence[Balance] = (), **lie):
    def make() -> Router:
        score = LinearScore(D, E)
        return Lying(lie, score=score, select=select or TopK(2), balance=balance)

    return make


def looks_ahead(scores_TE: Tensor, ctx: Context) -> Selection:
    """Chooses by the scores of the token after this one."""
    B, S = ctx.shape
    later = scores_TE.view(B, S, E).roll(-1, dims=1).view(B * S, E)
    return Selection(later.topk(2, dim=1).indices)


def looks_across(scores_TE: Tensor, ctx: Context) -> Selection:
    """Chooses by the first row of the batch."""
    B, S = ctx.shape
    first = scores_TE.view(B, S, E)[:1].expand(B, S, E).reshape(B * S, E) if B else scores_TE
    return Selection(first.topk(2, dim=1).indices)


def knows_the_length(scores_TE: Tensor, ctx: Context) -> Selection:
    """Turns by one expert for each position that is still to come: causal in content, but a prefix routes otherwise."""
    B, S = ctx.shape
    left = torch.arange(S - 1, -1, -1).repeat(B)
    return Selection((scores_TE.argmax(1) + left)[:, None] % E)


def looks_back(scores_TE: Tensor, ctx: Context) -> Selection:
    """Chooses by the mean score so far: causal, not token-wise."""
    B, S = ctx.shape
    return Selection(scores_TE.view(B, S, E).cumsum(1).view(B * S, E).topk(2, dim=1).indices)


def drops_some(scores_TE: Tensor, ctx: Context) -> Selection:
    keep = (ctx.logits[:, :1] > 0).expand(scores_TE.shape[0], 2)
    return Selection(scores_TE.topk(2, dim=1).indices, keep=keep)


def leaves_some_out(scores_TE: Tensor, ctx: Context) -> Selection:
    return Selection(torch.where(ctx.logits[:, :1] > 0, scores_TE.topk(2, dim=1).indices, -1))


class Counter(Balance):
    """State that moves, and says so only if it is told to."""

    def __init__(self, stateful: bool) -> None:
        super().__init__()
        self.stateful = stateful
        self.register_buffer("steps", torch.zeros(()))

    def update(self, summaries: Sequence[Summary]) -> None:
        self.steps += 1


class MovesInForward(Counter):
    def adjust(self, scores_TE: Tensor, ctx: Context) -> Tensor:
        self.steps += 1
        return scores_TE


FALSE = {
    "causal: the next token": (lying(looks_ahead, token_wise=False), "check_causal"),
    "causal: another row": (lying(looks_across, token_wise=False), "check_causal"),
    "causal: a prefix": (lying(knows_the_length, token_wise=False), "check_causal"),
    "token_wise: the tokens before": (lying(looks_back), "check_token_wise"),
    "token_wise: position": (lying(RoundRobin(2), token_wise=True), "check_token_wise"),
    "max_load": (lying(max_load=1.0), "check_max_load"),
    "dropless: drops": (lying(drops_some), "check_conservation"),
    "dropless: no expert": (lying(leaves_some_out), "check_conservation"),
    "experts_per_token": (lying(experts_per_token=3), "check_conservation"),
    "stateful": (lambda: lying(balance=[Counter(stateful=False)])(), "check_state"),
}


@pytest.mark.parametrize("promise", FALSE)
def test_a_false_promise_is_caught_by_its_check(promise):
    make, name = FALSE[promise]
    with pytest.raises(AssertionError):
        getattr(testing, name)(make)
    with pytest.raises(AssertionError):
        testing.check_router(make)


def test_every_promise_is_falsified_above():
    assert {promise.split(":")[0] for promise in FALSE} == {field.name for field in fields(Guarantees)}


# With the check that still objects: two of them count padding as tokens, as no gate may.
TRUE = {
    "looks ahead": (lying(looks_ahead, causal=False, token_wise=False), "check_mask"),
    "looks across": (lying(looks_across, causal=False, token_wise=False), None),
    "knows the length": (lying(knows_the_length, causal=False, token_wise=False), "check_mask"),
    "drops": (lying(drops_some, dropless=False), None),
    "leaves out": (lying(leaves_some_out, dropless=False), None),
    "state": (lambda: lying(balance=[Counter(stateful=True)])(), None),
    "turns": (lying(RoundRobin(2)), None),
}


@pytest.mark.parametrize("name", TRUE)
def test_the_same_gates_pass_when_they_promise_what_they_keep(name):
    make, objects = TRUE[name]
    for check in testing.CHECKS:
        if check.__name__ == objects:
            with pytest.raises(AssertionError):
                check(make)
        else:
            check(make)


def test_state_that_moves_in_a_forward_is_caught():
    with pytest.raises(AssertionError, match="a forward moved"):
        testing.check_state(lambda: lying(balance=[MovesInForward(stateful=True)])())


def test_a_causal_gate_that_cannot_decode_step_by_step_is_caught():
    with pytest.raises(AssertionError, match="decoding with a cache"):
        testing.check_cache(lying(looks_back, token_wise=False))
