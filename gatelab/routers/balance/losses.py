"""Auxiliary losses, each with its value at perfect balance. Padding is in none of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gatelab.routers.balance.base import Balance
from gatelab.routers.balance.scope import Scope, check_scope, counts, load_and_probability, mean_over_sequences
from gatelab.routers.context import Context

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class SwitchLoss(Balance):
    """coefficient · E · Σ f_i P_i; 1 · coefficient at perfect balance, for any K.

    f_i is the share of all requested assignments that expert i has, before any drop, P_i the mean over real tokens of
    its probability; only P has a gradient. It falls below 1 when f and P are opposed, so 1 is no lower bound.
    Hugging Face's form is K times this one.

    Args:
        coefficient: α; Switch uses 0.01.
        scope: over which tokens f and P are taken. `micro-batch`; `sequence`, the mean of one loss per sequence
            (DeepSeek's seq_aux; DeepSeek-V3, §2.1.2, equations 17-20); `global-batch`, f summed over all ranks and P of
            this rank (Qwen3), so that the mean of the ranks' gradients is that of the whole batch's loss as long as the
            ranks hold equally many tokens. In evaluation a rank counts by itself, since it may run alone.
        process_group: the ranks of `global-batch`; default all. A gate that holds one cannot be copied or pickled.

    Source: Switch Transformers, arXiv 2101.03961, §2.2, equations 4-6 (there K = 1); global batch: arXiv 2501.11873.
    """

    def __init__(
        self, coefficient: float, scope: Scope = "micro-batch", process_group: ProcessGroup | None = None
    ) -> None:
        super().__init__()
        check_scope(scope)
        self.coefficient, self.scope, self.process_group = coefficient, scope, process_group

    def losses(self, ctx: Context) -> dict[str, Tensor]:
        name = "switch" if self.scope == "micro-batch" else f"switch-{self.scope}"
        is_one_row = self.scope == "micro-batch" or (self.scope == "sequence" and ctx.shape[0] == 1)
        if ctx.balance is not None and is_one_row:
            return {name: self.coefficient * ctx.balance}
        load_GE, mean_GE = load_and_probability(ctx, self.scope, self.process_group)
        aligned_G = (load_GE * mean_GE).sum(1)
        return {name: self.coefficient * ctx.num_experts * mean_over_sequences(aligned_G, ctx)}

    def extra_repr(self) -> str:
        return f"coefficient={self.coefficient}, scope={self.scope!r}"


class GShardLoss(Balance):
    """coefficient · E · Σ f¹_i P_i, f¹_i being the share of *first* choices; 1 · coefficient at perfect balance.

    The paper writes the mean over experts, which is 1/E² at balance; its code multiplies by E², as here.

    Source: GShard, arXiv 2006.16668, algorithm 1; the factor E² from Lingvo's code.
    """

    def __init__(self, coefficient: float) -> None:
        super().__init__()
        self.coefficient = coefficient

    def losses(self, ctx: Context) -> dict[str, Tensor]:
        first_E = counts(ctx.selection.ids[None, :, 0], ctx.num_experts)[0]
        share_E = first_E / first_E.sum().clamp(min=1)
        return {"gshard": self.coefficient * ctx.num_experts * (share_E * ctx.mean(ctx.probabilities)).sum()}

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


class EntropyLoss(Balance):
    """coefficient · mean over real tokens of H(p) = -Σ p_i ln p_i; between 0 and coefficient · ln E.

    It says how sure the gate is, not how even the load: uniform p gives ln E, a one-hot p gives 0, and perfect balance
    allows any value between. A positive coefficient makes the gate decide (top-p gates then choose fewer experts), a
    negative one makes it hesitate.

    Source: Dynamic MoE, arXiv 2403.07652, §3.2 (the "dynamic loss").
    """

    def __init__(self, coefficient: float) -> None:
        super().__init__()
        self.coefficient = coefficient

    def losses(self, ctx: Context) -> dict[str, Tensor]:
        p_TE = ctx.probabilities
        # The clamp keeps the gradient of p ln p at p = 0 finite.
        entropy_T = -(p_TE * p_TE.clamp(min=torch.finfo(p_TE.dtype).tiny).log()).sum(-1)
        return {"entropy": self.coefficient * ctx.mean(entropy_T)}

    def extra_repr(self) -> str:
        return f"coefficient={self.coefficient}"
