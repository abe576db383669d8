"""Published models to the parameter, as layers, and Hugging Face's MoE blocks as ours and back.

`build` makes the layer of a published model; `from_hf`, `to_hf` and `swap_router` work on blocks and models of
transformers, which they read and never import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gatelab.zoo.claims import CLAIMS, Claim
from gatelab.zoo.geometry import Block, Geometry
from gatelab.zoo.models import MODELS, find
from gatelab.zoo.models.undisclosed import UNDISCLOSED
from gatelab.zoo.published import Figure, Model, Undisclosed
from gatelab.zoo.rows import flops_rows
from gatelab.zoo.table import render_model, render_table

if TYPE_CHECKING:
    from gatelab.zoo.hf.convert import from_hf
    from gatelab.zoo.hf.errors import UnsupportedBlock
    from gatelab.zoo.hf.swap import swap_router
    from gatelab.zoo.hf.to_hf import to_hf
    from gatelab.zoo.presets import build

# What brings layers in is imported when it is asked for, so that the tables stay cheap.
_LAZY = {
    "UnsupportedBlock": "gatelab.zoo.hf.errors",
    "build": "gatelab.zoo.presets",
    "from_hf": "gatelab.zoo.hf.convert",
    "swap_router": "gatelab.zoo.hf.swap",
    "to_hf": "gatelab.zoo.hf.to_hf",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


__all__ = [
    "CLAIMS",
    "MODELS",
    "UNDISCLOSED",
    "Block",
    "Claim",
    "Figure",
    "Geometry",
    "Model",
    "Undisclosed",
    "UnsupportedBlock",
    "build",
    "find",
    "flops_rows",
    "from_hf",
    "render_model",
    "render_table",
    "swap_router",
    "to_hf",
]
