"""Matrix-product FLOPs in closed form, 2 per multiply-add: what reaches a real token's output, and what is computed.

They differ where work is done and thrown away: padded positions pass through projections and gates, causal attention
computes the upper triangle of its scores too. What a gate dropped is in neither; `dropped` has it.
Elementwise and sorting work is measured, not derived: see `gatelab.bench.work`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gatelab.layers.attention import CausalAttention
from gatelab.layers.experts import Experts, SharedExpert
from gatelab.layers.moe import MoE
from gatelab.routers.filtering import LocalizedFiltering
from gatelab.routers.router import Router
from gatelab.routers.routing import Routing


@dataclass(frozen=True)
class Flops:
    """FLOPs of a forward.

    Attributes:
        useful: those that a real token's output needs.
        executed: those that are computed.
        dropped: those of assignments that a gate asked for and dropped.
    """

    useful: int
    executed: int
    dropped: int = 0

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.useful + other.useful, self.executed + other.executed, self.dropped + other.dropped)


def router_flops(router: Router, num_tokens: int, token_mask: Tensor | None = None) -> Flops:
    """A gate over T positions, of which `token_mask` (B, S) or (T,) leaves some real."""
    return Flops(router.flops(_real(num_tokens, token_mask)), router.flops(num_tokens))


def experts_flops(experts: Experts, routing: Routing) -> Flops:
    """Routed experts, from what was routed to them; zero-computation experts cost what their mixers do."""
    E, T = experts.num_experts, routing.num_tokens
    kept, dropped = (int(counts[:E].sum()) for counts in (routing.tokens_per_expert, routing.dropped))
    done = experts.flops(kept)
    total = Flops(done, done, experts.flops(dropped))
    if experts.zero_computation is not None:
        constant = [kind == "constant" for kind in experts.zero_computation.kinds]
        mixer = 4 * experts.hidden_size  # (2, D) per constant expert, over every token whoever it is routed to
        routed = int(routing.tokens_per_expert[E:][torch.tensor(constant)].sum())
        total += Flops(mixer * routed, mixer * T * sum(constant))
    return total


def shared_flops(shared: SharedExpert, num_tokens: int, token_mask: Tensor | None = None) -> Flops:
    """The expert of all tokens."""
    return Flops(_linears(shared) * _real(num_tokens, token_mask), _linears(shared) * num_tokens)


def filter_flops(lfa: LocalizedFiltering, num_tokens: int, token_mask: Tensor | None = None) -> Flops:
    """LFA."""
    return Flops(lfa.flops(_real(num_tokens, token_mask)), lfa.flops(num_tokens))


def attention_flops(
    attention: CausalAttention, batch_size: int, sequence_length: int, token_mask: Tensor | None = None
) -> Flops:
    """Causal self-attention over (B, S), its filter included.

    Of the S² scores of a row with r real tokens r(r + 1)/2 are useful; 4·H·d FLOPs each, with the values.
    """
    B, S = batch_size, sequence_length
    real_B = torch.full((B,), S) if token_mask is None else token_mask.view(B, S).bool().sum(1)
    pair = 4 * attention.num_heads * attention.head_dim
    pairs = int((real_B * (real_B + 1) // 2).sum())
    projections = _linears(attention)
    total = Flops(projections * int(real_B.sum()) + pair * pairs, projections * B * S + pair * B * S * S)
    if isinstance(attention.filter, LocalizedFiltering):
        total += filter_flops(attention.filter, B * S, token_mask)
    return total


def moe_flops(moe: MoE, routing: Routing) -> dict[str, Flops]:
    """A whole MoE layer by part: `router`, `experts`, and `shared` where it has one.

    Raises:
        TypeError: experts or shared expert are not this library's, so their cost is not known.
    """
    if not isinstance(moe.experts, Experts):
        raise TypeError(f"moe.experts is a {type(moe.experts).__name__}; FLOPs are known of gatelab.Experts only")
    T, mask = routing.num_tokens, routing.token_mask
    parts = {"router": router_flops(moe.router, T, mask), "experts": experts_flops(moe.experts, routing)}
    if moe.shared is not None:
        if not isinstance(moe.shared, SharedExpert):
            raise TypeError(f"moe.shared is a {type(moe.shared).__name__}; FLOPs are known of SharedExpert only")
        parts["shared"] = shared_flops(moe.shared, T, mask)
    return parts


def _real(num_tokens: int, token_mask: Tensor | None) -> int:
    return num_tokens if token_mask is None else int(token_mask.bool().sum())


def _linears(module: nn.Module) -> int:
    """FLOPs per position of the linear layers in a module."""
    return 2 * sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))
