"""Losses on the squared coefficient of variation over experts: importance (weights) and load (probable choices)."""

from __future__ import annotations

import torch
from torch import Tensor

from gatelab.routers.balance.base import Balance
from gatelab.routers.context import Context


def squared_variation(values_E: Tensor) -> Tensor:
    """(): population variance over squared mean (divided by E, not E - 1); 0 where all values are 0."""
    mean = values_E.mean()
    return (values_E - mean).square().mean() / mean.square().clamp(min=torch.finfo(values_E.dtype).tiny)


class ImportanceLoss(Balance):
    """coefficient · CV²(importance), importance_i = Σ over real tokens of expert i's weight; 0 at perfect balance.

    CV² is the population variance over the squared mean (Tutel divides by E - 1 instead: E/(E - 1) times as much).

    Args:
        coefficient: w_importance; Shazeer et al. use 0.1.
        sparse: True: the combine weights after top-k, before drops (Shazeer et al.). False: the softmax of the raw
            logits over all experts, without noise (V-MoE).

    Source: Shazeer et al. 2017, arXiv 1701.06538, §4, equations 6-7; V-MoE, arXiv 2106.05974, appendix A.2.
    """

    def __init__(self, coefficient: float, sparse: bool = False) -> None:
        super().__init__()
        self.coefficient, self.sparse = coefficient, sparse

    def losses(self, ctx: Context) -> dict[str, Tensor]:
        if self.sparse:
            ids = ctx.selection.ids
            weights_TE = ctx.weights.new_zeros(ids.shape[0], ctx.num_experts)
            weights_TE = weights_TE.scatter_add(1, ids.clamp(min=0), ctx.weights)  # weight 0 where there is no id
        else:
            weights_TE = ctx.logits.softmax(dim=-1)
        return {"importance": self.coefficient * squared_variation(ctx.mean(weights_TE))}

    def extra_repr(self) -> str:
        return f"coefficient={self.coefficient}, sparse={self.sparse}"


class LoadLoss(Balance):
    """coefficient · CV²(load), load_i = Σ over real tokens of P(expert i stays chosen if its own noise is drawn anew).

    0 at perfect balance; population variance, as `ImportanceLoss`. A smooth stand-in for the counts: with Gaussian
    noise of standard deviation σ_ti the probability is Φ((z_ti - θ_ti) / σ_ti), z without noise and the threshold θ
    taken from the noisy logits. It needs a noise part before it, so there is no load loss in evaluation.

    Args:
        coefficient: w_load; Shazeer et al. use 0.1.
        k: experts per token.
        excluding: True: θ_ti is the k-th largest noisy logit *of the others* (Shazeer et al.); False: the k-th largest
            of all (V-MoE).

    Source: Shazeer et al. 2017, arXiv 1701.06538, appendix A, equations 8-11; V-MoE, arXiv 2106.05974, appendix A.2.
    """

    def __init__(self, coefficient: float, k: int, excluding: bool = True) -> None:
        super().__init__()
        self.coefficient, self.k, self.excluding = coefficient, k, excluding

    def losses(self, ctx: Context) -> dict[str, Tensor]:
        if ctx.noise_std is None:
            return {}
        noisy_TE, E = ctx.noisy_logits, ctx.num_experts
        if self.excluding and self.k >= E:  # nobody can lose its place: the load is even
            return {"load": 0.0 * ctx.mean(ctx.logits).sum()}
        largest = noisy_TE.topk(min(self.k + 1, E), dim=-1).values
        threshold_TE = kth = largest[:, self.k - 1, None]
        if self.excluding:
            threshold_TE = torch.where(noisy_TE >= kth, largest[:, self.k, None], kth)
        probability_TE = torch.special.ndtr((ctx.logits - threshold_TE) / ctx.noise_std)
        return {"load": self.coefficient * squared_variation(ctx.mean(probability_TE))}

    def extra_repr(self) -> str:
        return f"coefficient={self.coefficient}, k={self.k}, excluding={self.excluding}"
