"""Mixture-of-Experts gates as pluggable modules over one expert layer, and a bench that measures them."""

from gatelab import kernels
from gatelab.layers.attention import FilteredAttention
from gatelab.layers.experts import Experts, SharedExpert
from gatelab.layers.moe import MoE
from gatelab.routers.context import Context, Selection
from gatelab.routers.filtering import LocalizedFiltering
from gatelab.routers.guarantees import Guarantees
from gatelab.routers.registry import create_router, describe_router, list_routers
from gatelab.routers.router import Router
from gatelab.routers.routing import Routing
from gatelab.routers.soft_routing import SoftRouting
from gatelab.routers.tape import Tape, attach, record, update_routers

__version__ = "0.1.0"

__all__ = [
    "Context",
    "Experts",
    "FilteredAttention",
    "Guarantees",
    "LocalizedFiltering",
    "MoE",
    "Router",
    "Routing",
    "Selection",
    "SharedExpert",
    "SoftRouting",
    "Tape",
    "attach",
    "create_router",
    "describe_router",
    "kernels",
    "list_routers",
    "record",
    "update_routers",
]
