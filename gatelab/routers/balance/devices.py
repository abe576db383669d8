"""DeepSeek-V2's losses over groups of experts that share a device."""

from __future__ import annotations

import torch
from torch import Tensor

from gatelab.routers.balance.base import Balance
from gatelab.routers.balance.scope import Scope, check_scope, load_and_probability, mean_over_sequences
from gatelab.routers.context import Context


class DeviceLoss(Balance):
    """coefficient · Σ_d f'_d P'_d over D devices; 1 · coefficient at perfect balance.

    f'_d is the mean over the device's experts of E · f_i, P'_d the sum of their P_i (f and P as in `SwitchLoss`). It
    evens out devices and leaves the experts of one device to themselves. With one expert per device it is `SwitchLoss`.

    Args:
        coefficient: α2; DeepSeek-V2 uses 0.05.
        num_experts: E.
        num_groups: D, the number of devices; consecutive experts share one. It must divide E.
        scope: over which tokens f and P are taken; DeepSeek's are per sequence.

    Raises:
        ValueError: D does not divide E.

    Source: DeepSeekMoE, arXiv 2401.06066, §3.3, equations 15-17; DeepSeek-V2, arXiv 2405.04434, §2.2.3.
    """

    def __init__(self, coefficient: float, num_experts: int, num_groups: int, scope: Scope = "sequence") -> None:
        super().__init__()
        check_scope(scope)
        _check_groups(num_experts, num_groups)
        self.coefficient, self.num_groups, self.scope = coefficient, num_groups, scope

    def losses(self, ctx: Context) -> dict[str, Tensor]:
        load_GE, mean_GE = load_and_probability(ctx, self.scope)
        load_GD = load_GE.unflatten(1, (self.num_groups, -1)).sum(2)
        mean_GD = mean_GE.unflatten(1, (self.num_groups, -1)).sum(2)
        loss_G = self.num_groups * (load_GD * mean_GD).sum(1)
        return {"device": self.coefficient * mean_over_sequences(loss_G, ctx)}

    def extra_repr(self) -> str:
        return f"coefficient={self.coefficient}, num_groups={self.num_groups}, scope={self.scope!r}"


class CommunicationLoss(Balance):
    """coefficient · Σ_d f''_d P''_d over D devices; 1 · coefficient when every token goes to M devices, evenly.

    f''_d = D/(M·T) · (tokens with an expert on device d), P''_d the sum of P_i over its experts, per sequence. It evens
    out what devices *receive*, which the selection (at most M devices a token) does not. Tokens that go to fewer than M
    devices make it smaller.

    Args:
        coefficient: α3; DeepSeek-V2 uses 0.02.
        num_experts: E.
        num_groups: D; consecutive experts share a device. It must divide E.
        keep_groups: M, the most devices a token may go to.

    Raises:
        ValueError: D does not divide E.

    Source: DeepSeek-V2, arXiv 2405.04434, §2.2.3, equations 29-31.
    """

    def __init__(self, coefficient: float, num_experts: int, num_groups: int, keep_groups: int) -> None:
        super().__init__()
        _check_groups(num_experts, num_groups)
        self.coefficient, self.num_groups, self.keep_groups = coefficient, num_groups, keep_groups

    def losses(self, ctx: Context) -> dict[str, Tensor]:
        B, S = ctx.shape
        D = self.num_groups
        ids = ctx.selection.ids
        device_TJ = torch.where(ids >= 0, ids // (ctx.num_experts // D), D)
        sent_TD = torch.zeros(B * S, D + 1, device=ids.device).scatter(1, device_TJ, 1.0)[:, :D]
        real_B = torch.full((B, 1), S, device=ids.device) if ctx.token_mask is None else ctx.token_mask.sum(1)[:, None]
        load_BD = D / self.keep_groups * sent_TD.view(B, S, D).sum(1) / real_B.clamp(min=1)
        _, mean_BE = load_and_probability(ctx, "sequence")
        loss_B = (load_BD * mean_BE.unflatten(1, (D, -1)).sum(2)).sum(1)
        return {"communication": self.coefficient * mean_over_sequences(loss_B, ctx)}

    def extra_repr(self) -> str:
        return f"coefficient={self.coefficient}, num_groups={self.num_groups}, keep_groups={self.keep_groups}"


def _check_groups(num_experts: int, num_groups: int) -> None:
    if num_groups < 1 or num_experts % num_groups:
        raise ValueError(f"num_groups={num_groups} does not divide num_experts={num_experts}; use a divisor")
