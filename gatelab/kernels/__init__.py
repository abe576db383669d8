"""The primitives every gate and expert layer is made of, each with one signature in every backend."""

from gatelab.kernels.attention_gate import attention_gate
from gatelab.kernels.backend import use
from gatelab.kernels.balanced_assignment import Assignment, balanced_assignment
from gatelab.kernels.expert_mlp import expert_mlp
from gatelab.kernels.group_by_expert import group_by_expert
from gatelab.kernels.local_filter import local_filter
from gatelab.kernels.router_logits import router_logits
from gatelab.kernels.sinkhorn import sinkhorn
from gatelab.kernels.topk import topk
from gatelab.kernels.topk_gate import TopKGate, topk_gate
from gatelab.kernels.topk_routing import TopKRouting, topk_routing

__all__ = [
    "Assignment",
    "TopKGate",
    "TopKRouting",
    "attention_gate",
    "balanced_assignment",
    "expert_mlp",
    "group_by_expert",
    "local_filter",
    "router_logits",
    "sinkhorn",
    "topk",
    "topk_gate",
    "topk_routing",
    "use",
]
