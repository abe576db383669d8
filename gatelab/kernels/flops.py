"""Formulas with which torch's FLOP counter sees inside operators that it cannot trace.

Matrix products alone, 2 per multiply-add, of the assignments there are: the tail of `token_index` costs nothing.
"""

from torch import Tensor
from torch._subclasses.fake_tensor import is_fake


def expert_mlp_forward(x_TD, token_index, expert_offsets, weights, up_proj, down_proj, *_, **__) -> int:
    """2·N·D·(J + I)."""
    return 2 * _assignments(token_index, expert_offsets) * _one_expert(up_proj, down_proj)


def expert_mlp_backward(
    grad_TD,
    hidden,
    x_TD,
    token_index,
    expert_offsets,
    weights,
    up_proj,
    down_proj,
    up_bias,
    down_bias,
    activation,
    weights_on_input,
    x_wanted,
    weights_wanted,
    experts_wanted,
    **_,
) -> int:
    """2·N·D·I to the activations, 2·N·J·D more to x, and 2·N·D·(J + I) to the experts' weights, where wanted."""
    to_x = x_wanted or (weights_on_input and weights_wanted)
    each = down_proj[0].numel() + to_x * up_proj[0].numel() + experts_wanted * _one_expert(up_proj, down_proj)
    return 2 * _assignments(token_index, expert_offsets) * each


def _one_expert(up_proj: Tensor, down_proj: Tensor) -> int:
    return up_proj[0].numel() + down_proj[0].numel()


def _assignments(token_index: Tensor, expert_offsets: Tensor) -> int:
    """N; where there is no data, the most it can be."""
    no_data = is_fake(expert_offsets) or expert_offsets.is_meta
    return token_index.shape[0] if no_data else int(expert_offsets[-1])
