"""A gate of your own in one file: experts as directions on a sphere.

gatelab compare --routers topk-softmax,examples/mygate.py:MyGate
"""

import torch
from torch import nn
from torch.nn import functional as F

import gatelab
from gatelab.routers.balance import SwitchLoss
from gatelab.routers.select import TopK
from gatelab.routers.weight import Renormalize


class SphereScore(nn.Module):
    """Logits = temperature · cosine of the token and each expert's direction; (T, E)."""

    def __init__(self, hidden_size: int, num_experts: int, temperature: float) -> None:
        super().__init__()
        self.hidden_size, self.num_experts, self.temperature = hidden_size, num_experts, temperature
        self.directions = nn.Parameter(torch.randn(num_experts, hidden_size))

    def forward(self, ctx: gatelab.Context) -> torch.Tensor:
        cosine = F.normalize(ctx.hidden_TD, dim=1) @ F.normalize(self.directions, dim=1).T
        return self.temperature * cosine


def MyGate(hidden_size: int, num_experts: int, top_k: int = 2, temperature: float = 8.0) -> gatelab.Router:
    """Cosine top-k with the Switch loss."""
    return gatelab.Router(
        score=SphereScore(hidden_size, num_experts, temperature),
        activation="softmax",
        select=TopK(top_k),
        weight=Renormalize(),
        balance=[SwitchLoss(0.01)],
    )
