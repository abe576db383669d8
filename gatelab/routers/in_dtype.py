"""Parts of a gate in the gate's dtype, whatever the model was moved to."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gatelab.routers.context import promises


def in_dtype(part: Any, dtype: torch.dtype, *args: Any) -> Any:
    """Run a part as if its parameters and buffers had `dtype`, whatever the model was moved to."""
    if isinstance(part, nn.Module) and not promises(part, "casts") and _has_tensors(part):
        tensors = {**dict(part.named_parameters()), **dict(part.named_buffers())}
        cast = {name: t.to(dtype) for name, t in tensors.items() if t.is_floating_point() and t.dtype != dtype}
        if cast:
            return torch.func.functional_call(part, cast, args)
    return part(*args)


def _has_tensors(module: nn.Module) -> bool:
    """Whether there may be a parameter or buffer below; to list them takes longer than most parts do."""
    return bool(module._parameters or module._buffers) or any(map(_has_tensors, module.children()))
