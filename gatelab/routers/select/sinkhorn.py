"""Top-k of a Sinkhorn plan."""

from __future__ import annotations

from torch import Tensor, nn

from gatelab import kernels
from gatelab.routers.context import Context, Selection
from gatelab.routers.guarantees import Guarantees


class SinkhornTopK(nn.Module):
    """In training the k largest entries of each row of the plan that spreads tokens evenly over experts; then top-k.

    The plan is soft, so its top-k is only nearly even. Within a row it orders experts by score minus a price that is
    found anew for every batch and kept nowhere: evaluation, without it, falls back to the plain scores.

    Args:
        k: experts per token.
        iterations: of `kernels.sinkhorn`.

    Source: S-BASE, Clark et al. 2022, arXiv 2202.01169; Megatron-LM's `sinkhorn_load_balancing`. Deviations: computed
        in the logarithm (the original overflows for scores above 88), a fixed number of iterations instead of a
        tolerance, padding left out.
    """

    def __init__(self, k: int, iterations: int = 16) -> None:
        super().__init__()
        self.k, self.iterations = k, iterations

    def forward(self, scores_TE: Tensor, ctx: Context) -> Selection:
        if ctx.training:
            scores_TE = kernels.sinkhorn(scores_TE, iterations=self.iterations, token_mask=ctx.mask_T)
        return Selection(scores_TE.topk(self.k, dim=-1).indices)

    def guarantees(self, training: bool) -> Guarantees:
        return Guarantees(causal=not training, token_wise=not training, experts_per_token=self.k)

    def extra_repr(self) -> str:
        return f"k={self.k}, iterations={self.iterations}"
