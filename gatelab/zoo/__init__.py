"""Published models to the parameter: their geometry, what follows from it, and the claims made about them."""

from gatelab.zoo.claims import CLAIMS, Claim
from gatelab.zoo.geometry import Block, Geometry
from gatelab.zoo.models import MODELS, find
from gatelab.zoo.models.undisclosed import UNDISCLOSED
from gatelab.zoo.published import Figure, Model, Undisclosed
from gatelab.zoo.rows import flops_rows
from gatelab.zoo.table import render_model, render_table

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
    "find",
    "flops_rows",
    "render_model",
    "render_table",
]
