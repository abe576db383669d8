"""SparseMixer-v2: experts are sampled, and the gradient knows it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gatelab.routers.context import Context, Selection
from gatelab.routers.guarantees import Guarantees


class SparseMixer(nn.Module):
    """k experts, one after the other; in training sampled from a masked softmax, in evaluation its largest.

    Each pick closes the experts already taken and those with (max - z)/max(|z|, max) > 2ε, max being the largest
    logit still open, and draws from p = softmax over what is open. Its weight is p of the drawn expert, so weights need
    not sum to 1. In training the weight is multiplied by c = 1 if the draw is the largest, else 1 with probability 1/4
    and 1/3 otherwise, while the gradient is that of p without c: Heun's third-order estimate of the gradient through
    the draw. It works on logits: `select_on="logits"`.

    Args:
        k: experts per token; published with 2, further picks follow the same rule.
        eps: ε.

    Source: GRIN, arXiv 2409.12136, §3 and appendix; Heun's estimate: SparseMixer, arXiv 2310.00811. Masks and
    constants as in the released Phi-3.5-MoE, which writes 1/3 as 0.3333.
    """

    def __init__(self, k: int, eps: float = 0.01) -> None:
        super().__init__()
        self.k, self.eps = k, eps

    def forward(self, scores_TE: Tensor, ctx: Context) -> Selection:
        taken_TE = torch.zeros_like(scores_TE, dtype=torch.bool)
        picks, gates = [], []
        for _ in range(self.k):
            id_T1, gate_T1 = self._pick(scores_TE, taken_TE, None, ctx.training)
            taken_TE = taken_TE.scatter(1, id_T1, True)
            picks.append(id_T1)
            gates.append(gate_T1)
        return Selection(torch.cat(picks, dim=1), gates=torch.cat(gates, dim=1))

    def gates_at(self, ids_TJ: Tensor, scores_TE: Tensor, ctx: Context) -> Tensor:
        """The weights of picks that were made elsewhere, in their order; each is open when its turn comes."""
        taken_TE = torch.zeros_like(scores_TE, dtype=torch.bool)
        gates = [scores_TE.new_zeros(scores_TE.shape[0], 0)]
        for given_T1 in ids_TJ.split(1, dim=1):
            real_T1 = given_T1 >= 0
            id_T1, gate_T1 = self._pick(scores_TE, taken_TE, given_T1.clamp(min=0), ctx.training)
            taken_TE = taken_TE | (real_T1 & torch.zeros_like(taken_TE).scatter(1, id_T1, True))
            gates.append(gate_T1)
        return torch.cat(gates, dim=1)

    def _pick(
        self, scores_TE: Tensor, taken_TE: Tensor, given_T1: Tensor | None, training: bool
    ) -> tuple[Tensor, Tensor]:
        fixed_TE = scores_TE.detach()
        largest, best_T1 = fixed_TE.masked_fill(taken_TE, -torch.inf).max(dim=1, keepdim=True)
        # Multiplied out, so that all-zero logits are no 0/0.
        far_TE = largest - fixed_TE > 2 * self.eps * torch.maximum(fixed_TE.abs(), largest)
        if given_T1 is not None:
            far_TE = far_TE.scatter(1, given_T1, False)
        open_TE = scores_TE.masked_fill(taken_TE | far_TE, -torch.inf)
        p_TE = open_TE.softmax(dim=1)
        if given_T1 is not None:
            id_T1 = given_T1
        elif training:
            smallest = torch.finfo(scores_TE.dtype).tiny
            gumbel_TE = -torch.empty_like(fixed_TE).exponential_().clamp(min=smallest).log()
            id_T1 = (open_TE.detach() + gumbel_TE).argmax(dim=1, keepdim=True)
        else:
            id_T1 = best_T1
        p_T1 = p_TE.gather(1, id_T1)
        if not training:
            return id_T1, p_T1
        whole_T1 = (id_T1 == p_TE.detach().argmax(dim=1, keepdim=True)) | (torch.rand_like(largest) > 0.75)
        return id_T1, p_T1 - torch.where(whole_T1, 0.0, 2 / 3) * p_T1.detach()

    def guarantees(self, training: bool) -> Guarantees:
        return Guarantees(token_wise=not training, experts_per_token=self.k)

    def extra_repr(self) -> str:
        return f"k={self.k}, eps={self.eps}"
