"""Products and roundings of tiles, with what the interpreter's NumPy needs in order to do as the hardware does."""

import triton
import triton.language as tl

from gatelab.kernels.triton._expert_configs import INTERPRETED


@triton.jit
def dot(a, b, c, PRECISION: tl.constexpr):
    """a @ b + c in float32."""
    if INTERPRETED:  # NumPy has no bfloat16
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, c, input_precision=PRECISION)


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """Float32 to the nearest of DTYPE, ties to even."""
    if INTERPRETED and tl.bfloat16 == DTYPE:  # it would cut off the lower 16 bits, and make 1e-38 of 0
        bits = x.to(tl.int32, bitcast=True)
        carry = 0x7FFF + ((bits >> 16) & 1)
        y = (tl.where(x == x, bits + carry, bits) >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        y = x.to(DTYPE)
    return y


@triton.jit
def halves(x):
    """The left and the right half of the columns."""
    return tl.split(tl.permute(tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2)), (0, 2, 1)))
