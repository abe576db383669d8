"""A gate that norms its input and scales each expert's weight (Gemma 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelab.layers.moe import MoE
from gatelab.routers.context import Context
from gatelab.routers.router import Router
from gatelab.routers.score import LinearScore
from gatelab.routers.select import TopK
from gatelab.routers.weight import Renormalize
from gatelab.zoo.hf.activation import numbers_of
from gatelab.zoo.hf.blocks import EXPERTS
from gatelab.zoo.hf.errors import running
from gatelab.zoo.hf.experts import Answers, find_experts
from gatelab.zoo.hf.links import same
from gatelab.zoo.hf.plan import Plan


class NormedScore(LinearScore):
    """z = W (x̂ · s / √D) with x̂ = x over its root mean square and s a learned (D,).

    Args:
        hidden_size: D.
        num_experts: E.
        eps: of the norm.
    """

    def __init__(self, hidden_size: int, num_experts: int, eps: float = 1e-6) -> None:
        super().__init__(hidden_size, num_experts)
        self.scale, self.eps = nn.Parameter(torch.ones(hidden_size)), eps

    def forward(self, ctx: Context) -> Tensor:
        normed_TD = F.rms_norm(ctx.hidden_TD, (self.hidden_size,), eps=self.eps)
        return F.linear(normed_TD * self.scale * self.hidden_size**-0.5, self.weight)


class ExpertScale(nn.Module):
    """Times a learned number per expert."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(num_experts))

    def forward(self, gates_TJ: Tensor, valid_TJ: Tensor, ctx: Context) -> Tensor:
        return gates_TJ * self.scale.to(gates_TJ.dtype)[ctx.selection.ids.clamp(min=0)]


def read_normed_gate(block: nn.Module) -> Plan | None:
    """Softmax of `NormedScore`, top-k, renormalised, times a scale per expert."""
    named = dict(block.named_parameters())
    if not {"router.proj.weight", "router.scale", "router.per_expert_scale"} <= named.keys():
        return None
    gate, experts = block.get_submodule("router"), block.get_submodule(EXPERTS)
    E, D = named["router.proj.weight"].shape
    x = torch.randn(8, D, generator=torch.Generator().manual_seed(0)).to(next(experts.parameters()))
    with torch.no_grad(), running():
        _, weights, ids = gate(x)
        answers = [Answers(s * x, ids, weights, experts(s * x, ids, weights)) for s in (1.0, 25.0)]
    ours, links, _ = find_experts(experts, f"{EXPERTS}.", block, answers, E)
    with torch.device("meta"):
        router = Router(
            score=NormedScore(D, E, numbers_of(gate)["eps"]),
            select=TopK(ids.shape[1]),
            weight=[Renormalize(), ExpertScale(E)],
        )
    links += [
        same("router.score.weight", "router.proj.weight"),
        same("router.score.scale", "router.scale"),
        same("router.weight.1.scale", "router.per_expert_scale"),
    ]
    return Plan(MoE(router, ours), links, x[None], x[None])
