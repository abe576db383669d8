"""The named activations and their derivatives, on float32 tiles. They keep a NaN, as torch does."""

import triton
import triton.language as tl

# gated or not, this function is applied to `up_proj`'s features (gated: to the gate half)
POINTWISE = {"swiglu": "silu", "geglu": "gelu", "gelu": "gelu", "silu": "silu", "relu": "relu", "relu2": "relu2"}


@triton.jit
def function(h, NAME: tl.constexpr):
    if NAME == "silu":
        f = h * tl.sigmoid(h)
    elif NAME == "gelu":
        f = 0.5 * h * (1 + tl.erf(h * 0.7071067811865476))
    elif NAME == "relu":
        f = tl.where(h <= 0, 0.0, h)
    else:
        tl.static_assert(NAME == "relu2")
        f = tl.where(h <= 0, 0.0, h * h)
    return f


@triton.jit
def derivative(h, NAME: tl.constexpr):
    if NAME == "silu":
        s = tl.sigmoid(h)
        f = s * (1 + h * (1 - s))
    elif NAME == "gelu":
        # Φ(h) + h·φ(h), φ the normal density: 1/√(2π) = 0.3989…
        f = 0.5 * (1 + tl.erf(h * 0.7071067811865476)) + h * tl.exp(-0.5 * h * h) * 0.3989422804014327
    elif NAME == "relu":
        f = tl.where(h <= 0, 0.0, 1.0)
    else:
        tl.static_assert(NAME == "relu2")
        f = tl.where(h <= 0, 0.0, 2 * h)
    return f
