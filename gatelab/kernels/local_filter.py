"""Localized Filtering (LFA): two causal two-tap convolutions, a residual and an RMSNorm."""

from torch import Tensor

from gatelab.kernels.backend import implementation


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
    """RMSNorm(x + o2) with o1_t = B0 x_{t-1} + B1 x_t + b1 and o2_t = C0 o1_{t-1} + C1 o1_t + b2.

    Before the start both x and o1 are zero; at masked positions too, so left padding is the same as no padding.

    Args:
        x_BSD: (B, S, D).
        first: (2, H, D), the taps B0 (one back) and B1 (here); H = D // 2 in the published layer.
        first_bias: (H,).
        second: (2, D, H), the taps C0 and C1.
        second_bias: (D,).
        norm_weight: (D,), the RMSNorm's scale.
        eps: added to the mean square.
        token_mask: (B, S) bool, True = a real token.
        history: what an earlier call returned, to go on where it stopped; None at the start of a sequence.

    Returns:
        The filtered sequence (B, S, D), and the history (x_{S-1} (B, D), o1_{S-1} (B, H)) for the next call.

    Source: Yuan 2.0, arXiv 2311.15786, §2.1 (Localized Filtering-based Attention), as in the released code.
    """
    run = implementation("local_filter", x_BSD.device.type)
    return run(
        x_BSD, first, first_bias, second, second_bias, norm_weight, eps=eps, token_mask=token_mask, history=history
    )
