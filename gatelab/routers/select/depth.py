"""Mixture-of-Depths: a block takes a fixed share of the tokens."""

from __future__ import annotations

from fractions import Fraction

from torch import Tensor, nn

from gatelab.routers.context import Context, Selection
from gatelab.routers.guarantees import Guarantees
from gatelab.routers.routing import ranked
from gatelab.routers.select.expert_choice import ExpertChoice
from gatelab.routers.select.grouping import Group


class DepthChoice(nn.Module):
    """In training each block takes the share of a group's tokens with the largest scores; in evaluation those above 0.

    Training looks at the whole group, so it is not causal. Evaluation is token by token, and takes about the same
    share if the scores were trained to say whether they were taken (`ChosenLoss`).

    Args:
        num_experts: E, the number of blocks; published with 1.
        share: of the real tokens, rounded up, at least one; 0.125 is published.
        group: `sequence` or `batch`.

    Source: Mixture-of-Depths, arXiv 2404.02258, §3.3-3.5.
    """

    def __init__(self, num_experts: int, share: float = 0.125, group: Group = "sequence") -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise ValueError(f"share={share} must be above 0 and at most 1")
        self.share = share
        self.training_choice = ExpertChoice(Fraction(str(share)) * num_experts, group)

    def forward(self, scores_TE: Tensor, ctx: Context) -> Selection:
        if ctx.training:
            return self.training_choice(scores_TE, ctx)
        ids, _ = ranked(scores_TE > 0, scores_TE)
        return Selection(ids)

    def guarantees(self, training: bool) -> Guarantees:
        return self.training_choice.guarantees(training) if training else Guarantees(dropless=False)

    def extra_repr(self) -> str:
        return f"share={self.share}"
