"""What a gate promises, whatever its input."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Guarantees:
    """Promises of a gate, or what one of its parts leaves of them, in one mode (training or evaluation).

    Attributes:
        causal: the routing of position (b, s) depends on row b up to s alone, and a prefix routes as it does inside
            the whole.
        token_wise: the routing of a token depends on that token alone.
        max_load: no expert gets more than ceil(max_load · K·T/E) tokens of a group of T real tokens (its row or the
            batch), K being the mean number of experts per token; None = no bound.
        dropless: every real token reaches an expert, and nothing that was requested is dropped.
        experts_per_token: exactly this many for every real token before drops; None = it varies.
        stateful: training moves state in `Router.update`.
    """

    causal: bool = True
    token_wise: bool = True
    max_load: float | None = None
    dropless: bool = True
    experts_per_token: int | None = None
    stateful: bool = False

    @staticmethod
    def joint(parts: Iterable[Any], training: bool) -> Guarantees:
        """What parts that work together can promise. A part without `guarantees(training)` breaks nothing."""
        whole = Guarantees()
        for part in parts:
            if (own := getattr(part, "guarantees", None)) is None:
                continue
            g: Guarantees = own(training)
            whole = replace(
                whole,
                causal=whole.causal and g.causal,
                token_wise=whole.token_wise and g.token_wise,
                dropless=whole.dropless and g.dropless,
                stateful=whole.stateful or g.stateful,
                max_load=whole.max_load if g.max_load is None else g.max_load,
                experts_per_token=whole.experts_per_token if g.experts_per_token is None else g.experts_per_token,
            )
        return whole
