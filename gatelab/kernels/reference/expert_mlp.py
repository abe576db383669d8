"""The experts' multilayer perceptrons, one after the other: the oracle."""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from gatelab.kernels.activations import resolve_activation


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
    """See `gatelab.kernels.expert_mlp`."""
    function = resolve_activation(activation).function
    # unbind, not up_proj[e]: the gradient of an index is a full-size tensor for every expert
    up_projs, down_projs = up_proj.unbind(), down_proj.unbind()
    up_biases = [None] * len(up_projs) if up_bias is None else up_bias.unbind()
    down_biases = [None] * len(up_projs) if down_bias is None else down_bias.unbind()
    y_TD = x_TD.new_zeros(x_TD.shape, dtype=torch.promote_types(x_TD.dtype, torch.float32))
    # experts without tokens take part with 0 rows, so that their gradients are zeros, not None
    for e, (start, stop) in enumerate(pairwise(expert_offsets.tolist())):
        token_n, weight_n1 = token_index[start:stop], weights[start:stop, None]
        h_nD = x_TD[token_n]
        if weights_on_input:
            h_nD = (h_nD * weight_n1).to(x_TD.dtype)
        a_nI = function(F.linear(h_nD, up_projs[e], up_biases[e]))
        out_nD = F.linear(a_nI, down_projs[e], down_biases[e])
        if not weights_on_input:
            out_nD = out_nD * weight_n1
        y_TD = y_TD.index_add(0, token_n, out_nD.to(y_TD.dtype))
    return y_TD.to(x_TD.dtype)
