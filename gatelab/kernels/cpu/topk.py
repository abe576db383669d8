"""Choosing experts in numba (extra `fast`), where that is worth it."""

import numpy as np
import torch
from torch import Tensor

from gatelab.kernels.cpu._plain import is_plain, rows_in_numba
from gatelab.kernels.reference.topk import topk as reference

_WORTH_NUMBA = 1 << 14  # scores: below, nothing here takes long
_MOST_PASSES = 16  # over a row, one per choice and one more


def topk(scores_TE: Tensor, k: int) -> Tensor:
    """See `gatelab.kernels.topk`. Rows in which equal scores compete are left to `torch.topk`."""
    worth = scores_TE.numel() >= _WORTH_NUMBA and k < _MOST_PASSES and scores_TE.dtype == torch.float32
    if not worth or not is_plain(scores_TE) or (rows := rows_in_numba()) is None:
        return reference(scores_TE, k)
    scores_TE = scores_TE.detach()
    ids, doubtful = rows.topk(scores_TE.numpy().view(np.int32), k)
    ids_TK = torch.from_numpy(ids)
    if doubtful.size:
        rows_n = torch.from_numpy(doubtful)
        ids_TK[rows_n] = reference(scores_TE[rows_n], k)
    return ids_TK
