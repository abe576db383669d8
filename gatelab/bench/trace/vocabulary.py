"""The token ids that are counted one by one: the frequent ones, so that no table grows with the vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MOST_IDS = 2048  # V × E numbers a layer
MIN_TOKENS = 10  # an id with fewer says nothing about a share
PREFIX, RARE = -2, -1
VISIBLE = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"})


class Vocabulary:
    """The ids with at least `MIN_TOKENS` tokens, at most `MOST_IDS`, the most frequent first.

    Args:
        tokenizer: of transformers.
        frequency: (ids,) how often each occurs.

    Attributes:
        ids_V: (V,) the ids.
        shown: each as a reader meets it: spaces and line ends visible.
    """

    def __init__(self, tokenizer: Any, frequency: Tensor) -> None:
        self.frequency = frequency
        order = frequency.argsort(descending=True, stable=True)[:MOST_IDS]
        self.ids_V = order[frequency[order] >= MIN_TOKENS]
        self.shown = [_show(tokenizer, id) for id in self.ids_V.tolist()]
        self._label = torch.full((len(frequency),), RARE)
        self._label[self.ids_V] = torch.arange(len(self.ids_V))

    def __len__(self) -> int:
        return len(self.ids_V)

    def labels(self, prefix: int, window: list[int]) -> Tensor:
        """(prefix + S,) the place of each token of a window in `ids_V`, `RARE` or `PREFIX`."""
        return torch.cat([torch.full((prefix,), PREFIX), self._label[torch.tensor(window)]])

    def figures(self) -> dict[str, Any]:
        """What trace.json says of it."""
        return {
            "ids": self.ids_V.tolist(),
            "tokens": self.shown,
            "share": float(self.frequency[self.ids_V].sum() / self.frequency.sum()),
        }


def _show(tokenizer: Any, id: int) -> str:
    text = tokenizer.decode([id])
    if not text or "\N{REPLACEMENT CHARACTER}" in text:  # part of a character, or nothing by itself
        text = str(tokenizer.convert_ids_to_tokens(id))
    return text.translate(VISIBLE)
