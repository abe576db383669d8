"""Balance: what keeps the load even. Losses, noise, bias and price; every hook is optional.

State moves in `update` alone, never in a forward: evaluation, recomputation and micro-batches leave it as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from gatelab.routers.context import Context
from gatelab.routers.guarantees import Guarantees
from gatelab.routers.routing import Summary


class Balance(nn.Module):
    """The hooks, each doing nothing. Buffers stay float32 whatever dtype the model is moved to."""

    stateful = False

    def perturb(self, logits_TE: Tensor, ctx: Context) -> Tensor:
        """Noise on the logits, before the activation."""
        return logits_TE

    def adjust(self, scores_TE: Tensor, ctx: Context) -> Tensor:
        """Bias, price or threshold on what `select` sees; the combine weights never see it."""
        return scores_TE

    def losses(self, ctx: Context) -> dict[str, Tensor]:
        """Auxiliary losses by name, each times its coefficient."""
        return {}

    def update(self, summaries: Sequence[Summary]) -> None:
        """Move state after an optimizer step, from the summaries of its micro-batches."""

    def guarantees(self, training: bool) -> Guarantees:
        return Guarantees(stateful=self.stateful)

    def _apply(self, fn: Callable, recurse: bool = True) -> Balance:
        state = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, old in state.items():
            new = self._buffers[name]
            if new is not None and new.dtype != old.dtype:
                setattr(self, name, new.to(old.dtype) if old.is_meta else old.to(new.device))
        return self


class SwitchLoss(Balance):
    """coefficient · E · Σ f_i P_i; 1 · coefficient at perfect balance, for any K.

    f_i is the share of all requested assignments that expert i has, P_i the mean over real tokens of its probability.

    Args:
        coefficient: α; Switch uses 0.01.

    Source: Switch Transformers, arXiv 2101.03961, §2.2, equations 4-6 (there K = 1).
    """

    def __init__(self, coefficient: float) -> None:
        super().__init__()
        self.coefficient = coefficient

    def losses(self, ctx: Context) -> dict[str, Tensor]:
        share_E = ctx.requested / ctx.requested.sum().clamp(min=1)
        mean_E = ctx.mean(ctx.probabilities)
        return {"switch": self.coefficient * ctx.num_experts * (share_E * mean_E).sum()}

    def extra_repr(self) -> str:
        return f"coefficient={self.coefficient}"


class ZLoss(Balance):
    """coefficient · mean over real tokens of (logsumexp z)², on raw logits; keeps them small.

    At z = 0 it is coefficient · (ln E)².

    Source: ST-MoE, arXiv 2202.08906, §4.2, equation 5.
    """

    def __init__(self, coefficient: float) -> None:
        super().__init__()
        self.coefficient = coefficient

    def losses(self, ctx: Context) -> dict[str, Tensor]:
        return {"z": self.coefficient * ctx.mean(ctx.logits.logsumexp(dim=-1).square())}

    def extra_repr(self) -> str:
        return f"coefficient={self.coefficient}"


class Prices(Balance):
    """One price per expert, the dual of the exact assignment, carried from batch to batch.

    In training the assignment starts its search from them; in evaluation they are subtracted from the scores, so that
    a token-wise argmax keeps the balance that was learned. State: `prices` (E,), the mean over the micro-batches of
    the last step (which differs from the prices of the whole batch).
    """

    stateful = True
    prices: Tensor

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.register_buffer("prices", torch.zeros(num_experts))

    def adjust(self, scores_TE: Tensor, ctx: Context) -> Tensor:
        # In training the assignment solves on the scores themselves: with E ∤ kT the loads are not fixed, and the
        # optimum of s - p is not that of s.
        if ctx.training:
            ctx.statistics["prices"] = self.prices
            return scores_TE
        return scores_TE - self.prices.to(scores_TE.dtype)

    def update(self, summaries: Sequence[Summary]) -> None:
        self.prices.copy_(torch.stack([s.statistics["prices"] for s in summaries]).mean(0))
