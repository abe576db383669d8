"""What a block is read as."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gatelab.layers.moe import MoE
from gatelab.zoo.hf.links import Link


@dataclass(frozen=True)
class Plan:
    """A block as ours, without its numbers.

    Attributes:
        moe: on the meta device, where its parts are not the block's own.
        links: where its numbers are in the block.
        x, output: hidden states (B, S, D) and what the block made of them, for the form of it.
        token_ids: the block's keyword for token ids, where it routes by them.
        vocabulary: how many token ids there are, where it does.
        previous: the block's keyword for what the gate of the layer before handed on, where it reads that; it returns
            its own as the second of a tuple.
        compares_experts: whether our columns are the block's expert ids.
    """

    moe: MoE
    links: list[Link]
    x: Tensor
    output: Any
    token_ids: str | None = None
    vocabulary: int = 0
    previous: str | None = None
    compares_experts: bool = True


def first(output: Any) -> Tensor:
    """The hidden states among what a block returns."""
    return output[0] if isinstance(output, tuple) else output
