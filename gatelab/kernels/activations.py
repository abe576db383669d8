"""Expert activations: they map the J features of `up_proj` to the I features that `down_proj` reads."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Activation(NamedTuple):
    """`function` maps (n, J) to (n, I); J = 2·I (gate half first, then the up half) if `gated`, else J = I.

    `gated` is None for a callable of the user: only its projections' shapes tell.
    """

    function: Callable[[Tensor], Tensor]
    gated: bool | None


def _swiglu(h: Tensor) -> Tensor:
    gate, up = h.chunk(2, dim=-1)
    return F.silu(gate) * up


def _geglu(h: Tensor) -> Tensor:
    gate, up = h.chunk(2, dim=-1)
    return F.gelu(gate) * up


def _relu2(h: Tensor) -> Tensor:
    return torch.relu(h).square()


# GLU variants: Shazeer 2020 (arXiv 2002.05202), eq. 6. Squared ReLU: So et al. 2021 (arXiv 2109.08668), section 3.1.
# GELU is the exact one (erf), not its tanh approximation.
ACTIVATIONS: dict[str, Activation] = {
    "swiglu": Activation(_swiglu, gated=True),
    "geglu": Activation(_geglu, gated=True),
    "gelu": Activation(F.gelu, gated=False),
    "silu": Activation(F.silu, gated=False),
    "relu": Activation(F.relu, gated=False),
    "relu2": Activation(_relu2, gated=False),
}


def resolve_activation(activation: str | Callable[[Tensor], Tensor]) -> Activation:
    """The activation of that name; a callable is taken as it is.

    Raises:
        ValueError: `activation` is neither callable nor a name in `ACTIVATIONS`.
    """
    if callable(activation):
        return Activation(activation, gated=None)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)} or a callable")
    return ACTIVATIONS[activation]
