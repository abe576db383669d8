"""Blocks whose structure alone does not tell: readers for one or two classes each, and reasons where there is none.

A reader is a function of the block that returns a `Plan`, or None where the block is not of its kind. What it returns
is verified like everything else.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from gatelab.zoo.hf.families.gemma import read_normed_gate
from gatelab.zoo.hf.families.inkling import read_shared_columns
from gatelab.zoo.hf.families.jetmoe import read_parallel_experts
from gatelab.zoo.hf.families.product_keys import read_product_keys
from gatelab.zoo.hf.families.reasons import refuse
from gatelab.zoo.hf.families.zaya import read_carrying_gate
from gatelab.zoo.hf.plan import Plan

READERS: tuple[Callable[[nn.Module], Plan | None], ...] = (
    refuse,
    read_parallel_experts,
    read_product_keys,
    read_shared_columns,
    read_normed_gate,
    read_carrying_gate,
)
