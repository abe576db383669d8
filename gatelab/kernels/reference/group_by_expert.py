"""Sorting assignments by expert: the oracle."""

import torch
from torch import Tensor


def group_by_expert(ids_TJ: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """See `gatelab.kernels.group_by_expert`."""
    expert_ids = ids_TJ.flatten()
    keys = torch.where(expert_ids < 0, num_experts, expert_ids)
    sorted_keys, order = torch.sort(keys, stable=True)
    experts = torch.arange(num_experts + 1, dtype=keys.dtype, device=keys.device)
    return order, torch.searchsorted(sorted_keys, experts)
