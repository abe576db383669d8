"""The filter as two matrix products; all between and after them, in two passes over memory.

The products of a stage are one: the two taps stacked are a plain (2H, D) matrix, and x times that is what a GPU's own
library does best. What is left is bound by memory, and is fused: the shift by one position, the sum of the taps and the
mask in one pass; the second shift and sum, the residual and the RMSNorm in another. So no shifted copy of x is made,
and the one intermediate kept for the backward pass, beside what the products keep, is the sum before the norm. A norm
inside the product would need a whole row of D outputs in one program, more than its registers hold.
"""

from torch import Tensor
from torch.nn import functional as F

from gatelab.kernels.reference.local_filter import local_filter as reference
from gatelab.kernels.triton._filter_norm import add_norm
from gatelab.kernels.triton._filter_taps import add_taps


def local_filter(
    x_BSD: Tensor,
    first: Tensor,
    first_bias: Tensor,
    second: Tensor,
    second_bias: Tensor,
    norm_weight: Tensor,
    *,
    eps: float = 1e-6,
    token_mask: Tensor | None = None,
    history: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """See `gatelab.kernels.local_filter`. Sums and the norm are in at least float32.

    Raises:
        NotImplementedError: in a second backward pass, which only the reference has.
    """
    if x_BSD.numel() == 0:
        return reference(
            x_BSD,
            first,
            first_bias,
            second,
            second_bias,
            norm_weight,
            eps=eps,
            token_mask=token_mask,
            history=history,
        )
    x = x_BSD if token_mask is None else x_BSD.masked_fill(~token_mask[..., None], 0)
    x_before, o1_before = history if history is not None else (None, None)
    o1 = add_taps(*_taps(x, first, first_bias, x_before), token_mask)
    taps, given = _taps(o1, second, second_bias, o1_before)
    given = None if given is None else given.to(x.dtype)  # which autocast may have changed
    y = add_norm(taps.to(x.dtype), given, x, norm_weight, float(eps))[0]
    return y, (x[:, -1], o1[:, -1])


def _taps(x: Tensor, taps: Tensor, bias: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(B, S, 2H) what each position gives the next one and itself, with the bias; (B, H) what the first is given."""
    H = taps.shape[1]
    given = F.linear(x, taps.flatten(0, 1), F.pad(bias, (H, 0)))
    return given, None if before is None else F.linear(before.to(x.dtype), taps[0])
