"""The E×E softmax of every token, written out."""

import torch
from torch import Tensor


def attention_gate(q_TE: Tensor, k_TE: Tensor, v_TE: Tensor) -> Tensor:
    """See `gatelab.kernels.attention_gate`."""
    A_TEE = torch.bmm(q_TE[:, :, None], k_TE[:, None, :]).softmax(dim=-1)
    return torch.bmm(A_TEE, v_TE[:, :, None])[:, :, 0]
