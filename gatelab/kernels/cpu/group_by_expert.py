"""Sorting assignments by expert, by radix."""

import numpy as np
import torch
from torch import Tensor


def group_by_expert(ids_TJ: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """See `gatelab.kernels.group_by_expert`."""
    return _group_by_expert(ids_TJ, num_experts)


@torch.library.custom_op("gatelab::group_by_expert_cpu", mutates_args=(), device_types="cpu")
def _group_by_expert(ids_TJ: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    keys = ids_TJ.numpy().reshape(-1)
    keys = np.where(keys < 0, num_experts, keys)
    order = np.argsort(keys.astype(np.int16) if num_experts < 2**15 else keys, kind="stable")
    expert_offsets = np.zeros(num_experts + 1, np.int64)
    np.cumsum(np.bincount(keys, minlength=num_experts)[:num_experts], out=expert_offsets[1:])
    return torch.from_numpy(order), torch.from_numpy(expert_offsets)


@_group_by_expert.register_fake
def _(ids_TJ: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    return ids_TJ.new_empty(ids_TJ.numel(), dtype=torch.int64), ids_TJ.new_empty(num_experts + 1, dtype=torch.int64)
