"""`build`: the MoE layer of a published model. (Not `build.py`: the module would hide the function of its name.)"""

from __future__ import annotations

import math
from typing import Any

import torch

from gatelab.layers.experts import Experts, SharedExpert
from gatelab.layers.moe import MoE
from gatelab.routers.filtering import LocalizedFiltering
from gatelab.routers.registry import create_router
from gatelab.zoo import parts
from gatelab.zoo.activations import ClampedSwiGLU
from gatelab.zoo.models import find
from gatelab.zoo.published import Model, Undisclosed

# The names of published configurations, as options of our recipes.
OPTIONS = {"n_group": "num_groups", "topk_group": "keep_groups", "routed_scaling_factor": "scale"}


def build(
    name: str,
    scale: float = 1.0,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> MoE:
    """The MoE layer of a published model: its gate, experts and shared experts, freshly initialised.

        moe = gatelab.zoo.build("yuan2.0-m32", scale=1/16)
        y, routing = moe(x)   # x (B, S, 128)

    Several shared experts are one as wide as all of them, which is the same. A model with localized filtering
    (Yuan 2.0) has it as `moe.lfa`; the published model runs it in front of the queries and keys of self-attention
    (`gatelab.FilteredAttention`), so the layer's own forward does not.

    Args:
        name: as for `gatelab flops`: case and punctuation do not matter, an unambiguous prefix will do.
        scale: factor on the widths (hidden, experts, shared experts); the numbers of experts stay.
        device, dtype: of the parameters; `device="meta"` to look at a full-width layer without its memory.

    Raises:
        ValueError: no or several models go by that name, its shape is not public, or `scale` leaves no width.
    """
    if not math.isfinite(scale):
        raise ValueError(f"scale={scale} is no width; pass a number such as 1/16")
    model = find(name)
    if isinstance(model, Undisclosed):
        relative = f"; its disclosed relative is {model.stand_in}" if model.stand_in else ""
        raise ValueError(f"{model.name} has no public shape to build from{relative}")
    with torch.device(device) if device is not None else torch.device(torch.get_default_device()):
        moe = _layer(model, scale)
    return moe if dtype is None else moe.to(dtype)


def _layer(model: Model, scale: float) -> MoE:
    spec = model.moe
    D = _width(model.geometry.hidden_size, scale)
    options: dict[str, Any] = {OPTIONS[option]: value for option, value in spec.router_options}
    if spec.zero_experts:
        options["num_identity"] = spec.zero_experts
    router = create_router(spec.router, D, spec.num_experts, spec.top_k, **options)
    oss = spec.activation == "swiglu-oss"
    experts = Experts(
        spec.num_experts,
        D,
        _width(spec.intermediate_size, scale),
        activation=ClampedSwiGLU() if oss else spec.activation,
        gated=True,
        bias=spec.expert_bias,
        zero_computation=router.zero_computation,
    )
    shared = None
    if spec.shared_experts:
        shared = SharedExpert(D, _width(spec.shared_intermediate_size, scale), gated_output=spec.shared_gate)
    moe = MoE(router, experts, shared)
    if any(isinstance(part, parts.LocalizedFiltering) for block in model.geometry.blocks for part in block.parts):
        moe.lfa = LocalizedFiltering(D)
    return moe


def _width(width: int, scale: float) -> int:
    scaled = round(width * scale)
    if scaled < 2:
        raise ValueError(f"scale={scale} leaves {scaled} of a width of {width}; use a larger one")
    return scaled
