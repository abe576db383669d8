"""Which parts do not go together, each with the reason. `Router` asks when it is made; all else is allowed.

The rules know our own parts. A part of yours is in nobody's way: a function or module that they do not know passes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from gatelab.routers import activation as activations
from gatelab.routers import balance, select, weight
from gatelab.routers.context import wrapped
from gatelab.routers.score.none import NoScore

if TYPE_CHECKING:
    from gatelab.routers.router import Router

POSITIVE = (activations.softmax, activations.std_softmax, activations.sqrt_softplus, torch.sigmoid)
SUM_TO_ONE = (activations.softmax, activations.std_softmax)
BLIND = (select.AllExperts, select.RandomK, select.RoundRobin, select.HashTable, select.ByLabel, select.Replay)
BY_COLUMN = (select.ExpertChoice, select.DepthChoice)
BY_SIGN = (select.Positive, select.DepthChoice)
NORMALIZED = (weight.Renormalize, weight.SoftmaxOverChosen)
OF_LOGITS = (weight.SoftmaxOverChosen, weight.SigmoidOfChosen)
NOISE = (balance.GaussianNoise, balance.LearnedNoise)


def check_compatible(router: Router) -> None:
    """Raise ValueError with the reason if two parts of the router do not go together."""
    for rule in RULES:
        for reason in rule(router):
            raise ValueError(reason)


def _has(router: Router, kinds: Any) -> Any:
    return next((part for part in wrapped(router.select) if isinstance(part, kinds)), None)


def _activation(router: Router) -> Any:
    found = router.activation
    return found.func if isinstance(found, functools.partial) else found


def _adjusters(router: Router) -> list[Any]:
    """Balance parts that move what the selection sees."""
    return [part for part in router.balance if type(part).adjust is not balance.Balance.adjust]


def _noisy(router: Router) -> bool:
    return any(isinstance(part, NOISE) for part in router.balance)


def _name(part: Any) -> str:
    return type(part).__name__


def _weights(router: Router) -> Iterator[str]:
    chain = router.weight.parts
    logits = _activation(router) is activations.none
    for place, part in enumerate(chain):
        if isinstance(part, OF_LOGITS) and (place or not logits):
            yield f"{_name(part)} takes logits; put it first among the weights and set activation='none'"
        if isinstance(part, weight.Renormalize) and logits and not place:
            yield "Renormalize divides by a sum that logits let vanish; use SoftmaxOverChosen, or another activation"
        if isinstance(part, weight.Renormalize) and place and isinstance(chain[place - 1], weight.Scale):
            yield "Renormalize divides the Scale before it out again; put Scale last"
        if isinstance(part, weight.Renormalize) and place and isinstance(chain[place - 1], NORMALIZED):
            yield f"Renormalize has nothing to do after {_name(chain[place - 1])}; leave one of them out"
        if isinstance(part, weight.Constant) and place:
            yield f"Constant replaces what {_name(chain[place - 1])} made; leave one of them out"
    own = _has(router, select.SparseMixer)
    if own is not None and chain and isinstance(chain[0], OF_LOGITS):
        yield f"{_name(own)} makes weights of its own, no logits; leave {_name(chain[0])} out"


def _selection(router: Router) -> Iterator[str]:
    kind, on_scores = _activation(router), router.select_on == "scores"
    if (part := _has(router, select.TopP)) is not None:
        if not on_scores or (kind in (*POSITIVE, activations.none, F.relu) and kind not in SUM_TO_ONE):
            yield "TopP gathers probability; use activation='softmax' and select_on='scores'"
        if _adjusters(router):
            yield f"TopP gathers probability, which {_name(_adjusters(router)[0])} would shift; use a loss"
    thresholds = any(isinstance(p, balance.QuantileThreshold) for p in router.balance)
    if (part := _has(router, BY_SIGN)) is not None and on_scores and kind in POSITIVE and not thresholds:
        yield f"{_name(part)} chooses scores above 0, and all are; use activation='relu', or select_on='logits'"
    if _has(router, select.SparseMixer) is not None and on_scores and kind is not activations.none:
        yield "SparseMixer takes the softmax of logits itself; set select_on='logits'"
    if (part := _has(router, select.RandomSecond)) is not None and kind is activations.none:
        yield "RandomSecond keeps a choice with a probability from its score, which logits are not; use 'softmax'"
    if (part := _has(router, select.Recycle)) is not None and part.k != 1:
        yield f"Recycle moves the one expert of a token; its selection has k={part.k}, make it 1"
    if isinstance(router.score, NoScore) and _has(router, BLIND) is None and not _noisy(router):
        yield f"NoScore gives {_name(router.select)} nothing to choose by; use a score"
    if isinstance(getattr(router.score, "score", None), NoScore):
        yield f"NoScore does not look at what {_name(router.score)} hands it; use it alone, or another score"


def _adjusting(router: Router) -> Iterator[str]:
    adjusters = _adjusters(router)
    if len(adjusters) > 1:
        yield f"{_name(adjusters[0])} and {_name(adjusters[1])} both move the selection; keep one"
    for part in adjusters:
        if (blind := _has(router, BLIND)) is not None:
            yield f"{_name(blind)} does not look at the scores that {_name(part)} moves; leave {_name(part)} out"
        if (by_column := _has(router, BY_COLUMN)) is not None:
            yield f"{_name(by_column)} ranks tokens within an expert, where {_name(part)} adds a constant; leave it out"
        exact = _has(router, select.BalancedAssignment) is not None
        if isinstance(part, balance.Prices) != exact:
            yield f"Prices belong to BalancedAssignment and to nothing else; {_name(router.select)} has {_name(part)}"
        if isinstance(part, balance.QuantileThreshold) != (_has(router, select.Positive) is not None):
            yield f"QuantileThreshold and Positive need each other; {_name(router.select)} has {_name(part)}"
        k = getattr(router.select, "k", None)
        priced = isinstance(part, (balance.QuantilePrices, balance.SweptPrices, balance.ProportionalBias))
        if priced and part.top_k != k:
            yield f"top_k={part.top_k} of {_name(part)} is not the {k} of {_name(router.select)}; give both the same"


def _losses(router: Router) -> Iterator[str]:
    for part in router.balance:
        if isinstance(part, balance.SparsityLoss) and _has(router, select.Positive) is None:
            yield f"SparsityLoss steers how many are chosen, which {_name(router.select)} settles; use another"
        if isinstance(part, balance.LoadLoss) and not _noisy(router):
            yield "LoadLoss needs noise to be smooth; put GaussianNoise or LearnedNoise beside it, or use another"
        size = getattr(part, "num_experts", router.num_experts)
        if size != router.num_experts:
            yield f"num_experts={size} of {_name(part)} is not the router's {router.num_experts}; give both the same"


RULES: tuple[Callable[[Router], Iterator[str]], ...] = (_weights, _selection, _adjusting, _losses)
