"""Attention over experts inside each token: the core of Yuan 2.0-M32's router."""

from torch import Tensor

from gatelab.kernels.backend import implementation


def attention_gate(q_TE: Tensor, k_TE: Tensor, v_TE: Tensor) -> Tensor:
    """z_i = Σ_j softmax_j(q_i · k_j) v_j, one E×E softmax per token, without scaling or mask.

    Args:
        q_TE, k_TE, v_TE: (T, E), float32 or float64: one number per expert and token.

    Returns:
        (T, E) router logits. 4·T·E² FLOPs in matrix products.

    Source: Yuan 2.0-M32, arXiv 2405.17976, §2.2, equations 1-2.
    """
    return implementation("attention_gate", q_TE.device.type)(q_TE, k_TE, v_TE)
