"""Sorting assignments by expert: by counting in numba (extra `fast`), else by radix in NumPy."""

import numpy as np
import torch
from torch import Tensor

from gatelab.kernels.cpu._plain import is_plain, rows_in_numba

_WORTH_NUMBA = 1 << 11  # entries


def group_by_expert(ids_TJ: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """See `gatelab.kernels.group_by_expert`."""
    # Without the operator, whose way through the dispatcher takes longer than the sort.
    return _grouped(ids_TJ, num_experts) if is_plain(ids_TJ) else _operator(ids_TJ, num_experts)


def _grouped(ids_TJ: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    keys = ids_TJ.numpy().reshape(-1)
    if keys.size >= _WORTH_NUMBA and keys.dtype == np.int64 and (rows := rows_in_numba()) is not None:
        order, expert_offsets = rows.group(keys, num_experts)
        return torch.from_numpy(order), torch.from_numpy(expert_offsets)
    keys = np.where(keys < 0, num_experts, keys)
    order = np.argsort(keys.astype(np.int16) if num_experts < 2**15 else keys, kind="stable")
    expert_offsets = np.zeros(num_experts + 1, np.int64)
    np.cumsum(np.bincount(keys, minlength=num_experts)[:num_experts], out=expert_offsets[1:])
    return torch.from_numpy(order), torch.from_numpy(expert_offsets)


_operator = torch.library.custom_op("gatelab::group_by_expert_cpu", _grouped, mutates_args=(), device_types="cpu")


@_operator.register_fake
def _(ids_TJ: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    return ids_TJ.new_empty(ids_TJ.numel(), dtype=torch.int64), ids_TJ.new_empty(num_experts + 1, dtype=torch.int64)
