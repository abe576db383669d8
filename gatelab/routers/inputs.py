"""Turning what a caller passes to a router into a `Context`, or saying in one line why it does not fit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gatelab.routers.context import Context
from gatelab.routers.routing import Routing

if TYPE_CHECKING:
    from gatelab.routers.router import Router


def to_context(
    router: Router,
    hidden_states: Tensor,
    token_mask: Tensor | None,
    token_ids: Tensor | None,
    labels: Tensor | None,
    previous: Routing | None,
    cache: dict[Any, Any] | None,
) -> Context:
    """A `Context` with (B, S, D) hidden states, zero where the mask says padding.

    Raises:
        ValueError: a shape does not fit; the message names the argument.
    """
    shape = tuple(hidden_states.shape)
    if hidden_states.dim() not in (2, 3):
        raise ValueError(f"hidden_states has shape {shape}; pass (B, S, D) or (T, D)")
    if router.hidden_size is not None and shape[-1] != router.hidden_size:
        raise ValueError(f"hidden_states has {shape[-1]} features; the router was made for {router.hidden_size}")
    hidden = hidden_states[None] if hidden_states.dim() == 2 else hidden_states
    batch = tuple(shape[:-1])
    if token_mask is not None:
        token_mask = _checked_mask(_beside(token_mask, batch, hidden, "token_mask")).to(torch.bool)
        hidden = hidden.masked_fill(~token_mask[..., None], 0)
    return Context(
        hidden_states=hidden,
        num_experts=router.num_experts,
        dtype=router.gate_dtype,
        training=router.training,
        token_mask=token_mask,
        token_ids=None if token_ids is None else _beside(token_ids, batch, hidden, "token_ids"),
        labels=None if labels is None else _beside(labels, batch, hidden, "labels"),
        previous=previous,
        cache=cache,
    )


def _beside(tensor: Tensor, batch: tuple[int, ...], hidden: Tensor, argument: str) -> Tensor:
    if tuple(tensor.shape) != batch:
        raise ValueError(f"{argument} has shape {tuple(tensor.shape)}; beside these hidden_states pass {batch}")
    return tensor.reshape(hidden.shape[0], hidden.shape[1]).to(hidden.device)


def _checked_mask(mask: Tensor) -> Tensor:
    """`mask`, unless it is an additive one on the CPU: cast to bool, its −inf would be the real tokens."""
    looks = mask.is_floating_point() and mask.device.type == "cpu" and not torch.compiler.is_compiling()
    if looks and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("token_mask holds other numbers than 0 and 1; pass True for real tokens, not an additive mask")
    return mask


def rows(ids: Tensor, ctx: Context, argument: str) -> Tensor:
    """(T, K) from (B, S, K) or (T, K) ids."""
    T = ctx.shape[0] * ctx.shape[1]
    if ids.dim() not in (2, 3) or ids.shape[:-1].numel() != T:
        raise ValueError(f"{argument} has shape {tuple(ids.shape)}; pass (B, S, K) or (T, K) expert ids, T = {T}")
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"{argument} is {ids.dtype}; pass integer expert ids")
    if ids.shape[-1] == 0:
        ids = ids.new_full((*ids.shape[:-1], 1), -1)
    return ids.reshape(T, ids.shape[-1]).to(ctx.hidden_states.device, torch.int64)


def seems_finite(x: Tensor) -> bool:
    """Whether a CPU tensor in eager mode has a finite sum. Where it has none, a closer look is worth it; others do."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or type(x) not in (Tensor, nn.Parameter):
        return True
    return math.isfinite(x.detach().sum(dtype=torch.promote_types(x.dtype, torch.float32)).item())


def check_finite(x: Tensor, argument: str) -> None:
    """Raise ValueError if a CPU tensor in eager mode holds NaN or inf."""
    if not seems_finite(x) and not bool((finite := x.isfinite()).all()):
        bad = int((~finite).any(-1).flatten().to(torch.int64).argmax())
        raise ValueError(
            f"{argument} holds {int((~finite).sum())} NaN or inf, the first at token {bad}; find their source"
        )


def check_forced(ids: Tensor, num_experts: int) -> None:
    """Raise ValueError if CPU ids in eager mode are out of range or name an expert twice for one token."""
    if ids.device.type != "cpu" or torch.compiler.is_compiling() or not ids.numel():
        return
    low, high = (int(v) for v in torch.aminmax(ids))
    if low < -1 or high >= num_experts:
        raise ValueError(f"forced holds ids from {low} to {high}; use 0 to {num_experts - 1}, or -1 for none")
    ordered = ids.sort(dim=1).values
    if bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any()):
        raise ValueError("forced names one expert twice for the same token; each id may stand once in a row")
