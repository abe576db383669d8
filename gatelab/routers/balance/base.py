"""The hooks of a balance part. State moves in `update` alone: evaluation, recomputation and micro-batches leave it."""

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


def mean_statistic(summaries: Sequence[Summary], name: str) -> Tensor | None:
    """The mean of a statistic over micro-batches; None when none has it, as after forced routing alone."""
    values = [s.statistics[name] for s in summaries if name in s.statistics]
    return torch.stack(values).mean(0) if values else None
