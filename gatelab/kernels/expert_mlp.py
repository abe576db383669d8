"""The experts' multilayer perceptrons: dispatch, two grouped matrix products, combine."""

from collections.abc import Callable

import torch
from torch import Tensor

from gatelab.kernels.activations import resolve_activation
from gatelab.kernels.backend import implementation
from gatelab.kernels.precision import without_autocast


def expert_mlp(
    x_TD: Tensor,
    token_index: Tensor,
    expert_offsets: Tensor,
    weights: Tensor,
    up_proj: Tensor,
    down_proj: Tensor,
    *,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    activation: str | Callable[[Tensor], Tensor] = "swiglu",
    weights_on_input: bool = False,
) -> Tensor:
    """Apply to each token its experts and add up the results: y_t = Σ_e w_te · down_e(act(up_e(x_t))).

    Under autocast `x_TD` and the experts' parameters are cast to its dtype; y keeps the dtype of `x_TD`.

    Args:
        x_TD: (T, D), the tokens.
        token_index: (M,) int64, M ≥ N, the token of each assignment, grouped by expert. Entries past
            `expert_offsets[-1]` = N are ignored whatever they hold.
        expert_offsets: (E+1,) int64, expert e owns the entries `expert_offsets[e]:expert_offsets[e + 1]`.
        weights: (M,) float32, the combine weights w. Their gradient is exact, zero in the tail.
        up_proj: (E, J, D); J = 2·I for gated activations (gate half first, then the up half: Hugging Face's
            `gate_up_proj`), else J = I.
        down_proj: (E, D, I).
        up_bias: (E, J) or None.
        down_bias: (E, D) or None.
        activation: A name (`swiglu`, `geglu`, `gelu`, `silu`, `relu`, `relu2`) or a callable (n, J) -> (n, I) that
            treats its rows independently.
        weights_on_input: The weight multiplies the row that enters the expert (Llama 4), not the row that leaves it.

    Returns:
        y (T, D) in the dtype of `x_TD`, summed over the experts in float32 (float64 for float64 input), in ascending
        order of expert. A token without an assignment gets 0.

    Raises:
        ValueError: An unknown activation, or shapes or dtypes that do not fit each other.
    """
    gated = resolve_activation(activation).gated
    _check_assignments(token_index, expert_offsets, weights, up_proj.shape[0])
    _check_shapes(x_TD, up_proj, down_proj, up_bias, down_bias, activation, gated)
    device_type, out_dtype = x_TD.device.type, x_TD.dtype
    if torch.is_autocast_enabled(device_type) and out_dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device_type)
        x_TD, up_proj, down_proj = x_TD.to(dtype), up_proj.to(dtype), down_proj.to(dtype)
        up_bias = None if up_bias is None else up_bias.to(dtype)
        down_bias = None if down_bias is None else down_bias.to(dtype)
    _check_dtypes(x_TD, up_proj, down_proj, up_bias, down_bias)
    with without_autocast(device_type):
        y_TD = implementation("expert_mlp", device_type)(
            x_TD,
            token_index,
            expert_offsets,
            weights,
            up_proj,
            down_proj,
            up_bias=up_bias,
            down_bias=down_bias,
            activation=activation,
            weights_on_input=weights_on_input,
        )
    return y_TD.to(out_dtype)


def _check_assignments(token_index: Tensor, expert_offsets: Tensor, weights: Tensor, num_experts: int) -> None:
    if token_index.ndim != 1 or token_index.dtype != torch.int64:
        raise ValueError(f"token_index is {token_index.dtype} {tuple(token_index.shape)}; pass a vector of int64")
    if weights.shape != token_index.shape or not weights.is_floating_point():
        raise ValueError(
            f"weights is {weights.dtype} {tuple(weights.shape)}; pass one float per entry of token_index,"
            f" {tuple(token_index.shape)}"
        )
    if expert_offsets.shape != (num_experts + 1,) or expert_offsets.dtype != torch.int64:
        raise ValueError(
            f"expert_offsets is {expert_offsets.dtype} {tuple(expert_offsets.shape)}; up_proj has E = {num_experts}:"
            f" pass int64 ({num_experts + 1},)"
        )


def _check_shapes(
    x_TD: Tensor,
    up_proj: Tensor,
    down_proj: Tensor,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: str | Callable[[Tensor], Tensor],
    gated: bool | None,
) -> None:
    if x_TD.ndim != 2 or up_proj.ndim != 3 or up_proj.shape[2] != x_TD.shape[1]:
        raise ValueError(f"x_TD {tuple(x_TD.shape)} and up_proj {tuple(up_proj.shape)} must be (T, D) and (E, J, D)")
    num_experts, up_features, hidden_size = up_proj.shape
    if down_proj.ndim != 3 or down_proj.shape[:2] != (num_experts, hidden_size):
        raise ValueError(f"down_proj is {tuple(down_proj.shape)}; pass (E, D, I) = ({num_experts}, {hidden_size}, I)")
    if gated is not None and up_features != (2 if gated else 1) * down_proj.shape[2]:
        raise ValueError(
            f"up_proj has J = {up_features} features and down_proj reads I = {down_proj.shape[2]};"
            f" activation={activation!r} needs J = {'2·I' if gated else 'I'}"
        )
    if up_bias is not None and up_bias.shape != (num_experts, up_features):
        raise ValueError(f"up_bias is {tuple(up_bias.shape)}; pass (E, J) = ({num_experts}, {up_features})")
    if down_bias is not None and down_bias.shape != (num_experts, hidden_size):
        raise ValueError(f"down_bias is {tuple(down_bias.shape)}; pass (E, D) = ({num_experts}, {hidden_size})")


def _check_dtypes(x_TD: Tensor, *parameters: Tensor | None) -> None:
    for parameter in parameters:
        if parameter is not None and parameter.dtype != x_TD.dtype:
            raise ValueError(f"x_TD is {x_TD.dtype}, the experts are {parameter.dtype}; cast one or use autocast")
