"""The k best experts of each token."""

from __future__ import annotations

from torch import Tensor, nn

from gatelab import kernels
from gatelab.routers.context import Context, Selection
from gatelab.routers.guarantees import Guarantees


class TopK(nn.Module):
    """The k experts with the largest scores. Ties break the same way every time, but not always to the lower id."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, scores_TE: Tensor, ctx: Context) -> Selection:
        return Selection(kernels.topk(scores_TE, self.k), complete=True)

    def guarantees(self, training: bool) -> Guarantees:
        return Guarantees(experts_per_token=self.k)

    def extra_repr(self) -> str:
        return f"k={self.k}"
