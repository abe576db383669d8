"""Top-k within the best groups of experts, so that a token reaches few devices."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from gatelab import kernels
from gatelab.routers.context import Context, Selection
from gatelab.routers.guarantees import Guarantees


class GroupLimitedTopK(nn.Module):
    """The k best experts of a token's `keep_groups` best groups; consecutive experts form a group.

    The others are set to -inf, not 0: adjusted scores may be negative, and 0 would win over them. Ties break the same
    way every time, but not always to the lower id.

    Args:
        k: experts per token.
        num_experts: E.
        num_groups: must divide E.
        keep_groups: M, groups a token may use; they must hold k experts.
        by: what makes a group good, its `max` score (DeepSeek-V2) or the sum of its `two-best` (DeepSeek-V3, on biased
            scores).

    Raises:
        ValueError: the groups do not divide the experts, or are too few for k.

    Source: DeepSeek-V2, arXiv 2405.04434, §2.2.2; DeepSeek-V3, arXiv 2412.19437, §2.1.2, and its released code.
    """

    def __init__(
        self, k: int, num_experts: int, num_groups: int, keep_groups: int, by: Literal["max", "two-best"]
    ) -> None:
        super().__init__()
        if num_groups < 1 or num_experts % num_groups:
            raise ValueError(f"num_groups={num_groups} does not divide num_experts={num_experts}; use a divisor")
        size = num_experts // num_groups
        if not k <= keep_groups * size <= num_experts:
            raise ValueError(f"keep_groups={keep_groups} of {num_groups} groups of {size} experts do not fit top_k={k}")
        if by not in ("max", "two-best"):
            raise ValueError(f"by={by!r} is unknown; choose 'max' or 'two-best'")
        self.k, self.num_groups, self.keep_groups = k, num_groups, keep_groups
        self.summands = 1 if by == "max" else min(2, size)

    def forward(self, scores_TE: Tensor, ctx: Context) -> Selection:
        return Selection(kernels.topk(self.opened(scores_TE), self.k), complete=True)

    def opened(self, scores_TE: Tensor) -> Tensor:
        """(T, E) with -inf outside the best groups."""
        scores_TGe = scores_TE.unflatten(1, (self.num_groups, -1))
        group_TG = scores_TGe.topk(self.summands, dim=-1).values.sum(-1)
        best_TM = group_TG.topk(self.keep_groups, dim=-1, sorted=False).indices
        closed_TG = torch.ones_like(group_TG, dtype=torch.bool).scatter(1, best_TM, False)
        return scores_TGe.masked_fill(closed_TG[:, :, None], -torch.inf).flatten(1)

    def guarantees(self, training: bool) -> Guarantees:
        return Guarantees(experts_per_token=self.k)

    def extra_repr(self) -> str:
        return f"k={self.k}, num_groups={self.num_groups}, keep_groups={self.keep_groups}"


def fit_groups(num_experts: int, k: int, num_groups: int, keep_groups: int) -> tuple[int, int]:
    """Published group numbers clipped to what E allows.

    Returns:
        The largest divisor of E up to `num_groups`, and `keep_groups` clipped to it but enough for k experts.
    """
    groups = max(g for g in range(1, min(num_groups, num_experts) + 1) if num_experts % g == 0)
    return groups, max(min(keep_groups, groups), -(-k * groups // num_experts))
