"""Any part with any part: what makes sense keeps the contract, the rest is refused with a reason.

Parts are discovered in their packages; a new one takes part as soon as its arguments have a value below.
"""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from gatelab import Context, Router, testing
from gatelab.routers import balance, score, select, weight
from gatelab.routers.activation import ACTIVATIONS
from gatelab.routers.balance import (
    Prices,
    QuantilePrices,
    QuantileThreshold,
    SignBias,
    SparsityLoss,
    SwitchLoss,
)
from gatelab.routers.score import LinearScore, NoScore
from gatelab.routers.select import (
    BalancedAssignment,
    Capacity,
    ExpertChoice,
    HashTable,
    Positive,
    RandomK,
    RandomSecond,
    Recycle,
    SparseMixer,
    TopK,
    TopP,
)
from gatelab.routers.weight import Constant, Renormalize, Scale, SigmoidOfChosen, SoftmaxOverChosen

D, E = 16, 6
# Argument name -> value; anything with a default keeps it.
VALUES: dict[str, Any] = {
    "hidden_size": D,
    "num_experts": E,
    "capacity_factor": 1.5,
    "coefficient": 0.01,
    "p": 0.5,
    "num_groups": 3,
    "keep_groups": 2,
    "by": "max",
    "table": torch.stack([torch.arange(64) % E, (torch.arange(64) + 1) % E], 1),
    "costs": [1.0] * 4 + [0.5] * 2,
    "std": 0.3,
    "eps": 0.1,
    "rate": 0.01,
    "value": 0.5,
    "factor": 2.0,
}
LEFT_OUT = {
    "Balance": "the base class",
    "Replay": "routes the tokens of its recording and no others",
    "SlotScore": "belongs to SoftRouter, which selects nothing",
}


def parts(module: Any) -> list[type]:
    """The public part classes of a package."""
    names = getattr(module, "__all__", None) or vars(module)
    found = [getattr(module, name) for name in names if name not in LEFT_OUT and not name.startswith("_")]
    return [cls for cls in found if inspect.isclass(cls) and issubclass(cls, nn.Module) and cls is not nn.Module]


def arguments(cls: type) -> list[str]:
    """What it cannot be made without."""
    if cls.__init__ is nn.Module.__init__ or cls.__init__ is balance.Balance.__init__:
        return []
    found = list(inspect.signature(cls).parameters.values())
    return [p.name for p in found if p.default is p.empty and p.kind is not p.VAR_KEYWORD]


SELECTS = [cls for cls in parts(select) if "select" not in arguments(cls)]
WRAPPERS = [cls for cls in parts(select) if "select" in arguments(cls)]
SCORES = [cls for cls in parts(score) if "score" not in arguments(cls)]
SCORE_WRAPPERS = [cls for cls in parts(score) if "score" in arguments(cls)]


def built(cls: type, k: int, **inner: Any) -> Any:
    values = {**VALUES, "k": k, "top_k": k, **inner}
    missing = [name for name in arguments(cls) if name not in values]
    assert not missing, f"give {missing} of {cls.__name__} a value in VALUES"
    return cls(**{name: values[name] for name in arguments(cls)})


def making(k: int, chosen: dict[str, Any], **options: Any) -> Callable[[], Router]:
    """A maker of fresh routers from part classes; wrappers go around, innermost first."""

    def make() -> Router:
        made_score = built(chosen["score"], k)
        for cls in chosen.get("score_wrappers", ()):
            made_score = built(cls, k, score=made_score)
        made_select = built(chosen["select"], k)
        for cls in chosen.get("wrappers", ()):
            made_select = built(cls, k, select=made_select)
        return Router(
            score=made_score,
            select=made_select,
            weight=[built(cls, k) for cls in chosen.get("weight", ())],
            # A gate whose weights are constant (k = 1 renormalised, say) learns from a loss alone: always one.
            balance=[SwitchLoss(0.01), *(built(cls, k) for cls in chosen.get("balance", ()))],
            **options,
        )

    return make


COMBINATIONS = st.fixed_dictionaries(
    {
        "score": st.sampled_from(SCORES),
        "score_wrappers": st.lists(st.sampled_from(SCORE_WRAPPERS), max_size=1),
        "select": st.sampled_from(SELECTS),
        "wrappers": st.lists(st.sampled_from(WRAPPERS), max_size=2, unique=True),
        "weight": st.lists(st.sampled_from(parts(weight)), max_size=2),
        "balance": st.lists(st.sampled_from(parts(balance)), max_size=2, unique=True),
    }
)


def test_discovery_found_the_parts():
    assert len(SCORES) >= 7
    assert {"TopK", "ExpertChoice", "BalancedAssignment", "SinkhornTopK", "Positive"} <= {c.__name__ for c in SELECTS}
    assert {"Capacity", "RandomSecond", "Recycle"} <= {c.__name__ for c in WRAPPERS}
    assert len(parts(balance)) >= 20
    assert len(parts(weight)) >= 5


REFUSED = {
    "SoftmaxOverChosen takes logits": {"weight": [SoftmaxOverChosen]},
    "SigmoidOfChosen takes logits": {"weight": [SigmoidOfChosen]},
    "put Scale last": {"weight": [Scale, Renormalize]},
    "nothing to do after Renormalize": {"weight": [Renormalize, Renormalize]},
    "Constant replaces": {"weight": [Renormalize, Constant]},
    "TopP gathers probability, which SignBias": {"select": TopP, "balance": [SignBias]},
    "Positive chooses scores above 0, and all are": {"select": Positive},
    "SparseMixer takes the softmax of logits": {"select": SparseMixer},
    "Recycle moves the one expert": {"wrappers": [Recycle]},
    "nothing to choose by": {"score": NoScore},
    "SignBias and QuantilePrices both move": {"balance": [SignBias, QuantilePrices]},
    "RandomK does not look at the scores": {"select": RandomK, "balance": [SignBias]},
    "HashTable does not look": {"select": HashTable, "balance": [SignBias]},
    "ExpertChoice ranks tokens": {"select": ExpertChoice, "balance": [SignBias]},
    "Prices belong to BalancedAssignment": {"balance": [Prices]},
    "has SignBias": {"select": BalancedAssignment, "balance": [SignBias]},
    "need each other": {"balance": [QuantileThreshold]},
    "SparsityLoss steers": {"balance": [SparsityLoss]},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_makes_no_sense_is_refused_with_the_reason(reason):
    chosen = {"score": LinearScore, "select": TopK, **REFUSED[reason]}
    with pytest.raises(ValueError, match=reason) as caught:
        making(2, chosen)()
    assert "\n" not in str(caught.value)


def test_wrapped_selections_are_looked_into():
    with pytest.raises(ValueError, match="ExpertChoice ranks tokens"):
        Router(score=LinearScore(D, E), select=Capacity(ExpertChoice(2), 1.0), balance=[SignBias(E)])
    with pytest.raises(ValueError, match="RandomSecond keeps a choice"):
        Router(score=LinearScore(D, E), activation="none", select=Capacity(RandomSecond(TopK(2)), 1.0))


def test_sizes_that_disagree_are_refused():
    with pytest.raises(ValueError, match="num_experts=4 of SignBias"):
        Router(score=LinearScore(D, E), select=TopK(2), balance=[SignBias(4)])
    with pytest.raises(ValueError, match="top_k=3 of QuantilePrices is not the 2 of TopK"):
        Router(score=LinearScore(D, E), select=TopK(2), balance=[QuantilePrices(E, 3)])


def test_parts_of_ones_own_are_in_nobodys_way():
    def first(scores_TE, ctx: Context):
        return TopK(1)(scores_TE, ctx)

    Router(score=LinearScore(D, E), activation=lambda z: z.exp(), select=first, weight=Renormalize())


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    k=st.integers(1, 3),
    chosen=COMBINATIONS,
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    select_on=st.sampled_from(["scores", "logits"]),
)
def test_a_combination_keeps_the_contract_or_is_refused(k, chosen, activation, select_on):
    make = making(k, chosen, activation=activation, select_on=select_on)
    try:
        make()
    except ValueError as refusal:
        reason = str(refusal)
        assert "\n" not in reason
        assert len(reason) > 30, "no reason is given"
        return
    testing.check_router(make)
