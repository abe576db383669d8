"""Shared experts that the gate weighs together with the chosen ones (Inkling)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelab.layers.experts import Experts
from gatelab.layers.moe import MoE
from gatelab.routers.balance import SignBias
from gatelab.routers.context import Context, Selection
from gatelab.routers.guarantees import Guarantees
from gatelab.routers.router import Router
from gatelab.routers.score import LinearScore
from gatelab.zoo.hf.activation import activation_of, numbers_of
from gatelab.zoo.hf.links import Link, same
from gatelab.zoo.hf.plan import Plan


class TopKAndShared(nn.Module):
    """The k best of the first E - S experts, and always the last S."""

    def __init__(self, k: int, num_shared: int) -> None:
        super().__init__()
        self.k, self.num_shared = k + num_shared, num_shared

    def forward(self, scores_TE: Tensor, ctx: Context) -> Selection:
        T, E = scores_TE.shape
        routed = scores_TE[:, : E - self.num_shared].topk(self.k - self.num_shared, dim=-1).indices
        always = torch.arange(E - self.num_shared, E, device=routed.device).expand(T, -1)
        return Selection(torch.cat([routed, always], dim=1))

    def guarantees(self, training: bool) -> Guarantees:
        return Guarantees(experts_per_token=self.k)

    def extra_repr(self) -> str:
        return f"k={self.k}, num_shared={self.num_shared}"


class SigmoidShares(nn.Module):
    """c · γ · σ(z_i) / Σ σ(z) over the token's experts, γ being learned; in the logarithm, as small σ underflow."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, gates_TJ: Tensor, valid_TJ: Tensor, ctx: Context) -> Tensor:
        logits_TJ = ctx.noisy_logits.gather(1, ctx.selection.ids.clamp(min=0))
        lowest = torch.finfo(logits_TJ.dtype).min
        shares_TJ = torch.where(valid_TJ, F.logsigmoid(logits_TJ), lowest).softmax(dim=-1)
        return shares_TJ * self.factor * self.scale.float()

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


def read_shared_columns(block: nn.Module) -> Plan | None:
    """σ gates over E routed and S shared experts; the shared ones become our last columns, chosen by every token."""
    named = block.state_dict(keep_vars=True)
    if not {"gate.global_scale", "gate.e_score_correction_bias", "shared_experts.gate_proj"} <= named.keys():
        return None
    gate = numbers_of(block.get_submodule("gate"))
    S, I, D = named["shared_experts.gate_proj"].shape
    E = named["gate.weight"].shape[0]
    own = block.get_submodule("experts")
    activation = activation_of(own, block, gated=True)
    with torch.device("meta"):
        router = Router(
            score=LinearScore(D, E),
            activation="sigmoid",
            select=TopKAndShared(int(gate["top_k"]), S),
            weight=SigmoidShares(gate["route_scale"]),
            balance=[SignBias(E)],
        )
        experts = Experts(E, D, I, activation=activation, gated=True)
    links = [
        same("router.score.weight", "gate.weight"),
        same("router.weight.0.scale", "gate.global_scale"),
        Link(
            "router.balance.0.bias",
            ("gate.e_score_correction_bias",),
            lambda t: F.pad(t["gate.e_score_correction_bias"], (0, S)),
            lambda ours, t: t["gate.e_score_correction_bias"].copy_(ours[: E - S]),
        ),
        _stacked("experts.gate_up_proj", "shared_experts.gate_proj", "shared_experts.up_proj"),
        _stacked("experts.down_proj", "shared_experts.down_proj"),
    ]
    x = torch.zeros(1, 2, D)
    return Plan(MoE(router, experts), links, x, x, compares_experts=False)


def _stacked(name: str, *shared: str) -> Link:
    """One stack of routed experts and, after them, the shared ones, whose rows may stand in several tensors."""

    def push(tensor: Tensor, named: Mapping[str, Tensor]) -> None:
        E = named[name].shape[0]
        named[name].copy_(tensor[:E])
        for part, rows in zip(shared, tensor[E:].chunk(len(shared), dim=1), strict=True):
            named[part].copy_(rows)

    return Link(
        name,
        (name, *shared),
        lambda named: torch.cat([named[name], torch.cat([named[part] for part in shared], dim=1)]),
        push,
    )
