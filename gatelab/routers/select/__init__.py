"""Select: scores to who goes where. `select(scores (T, E), ctx) -> Selection`."""

from gatelab.routers.select.assignment import BalancedAssignment
from gatelab.routers.select.baselines import AllExperts, RandomK, RoundRobin
from gatelab.routers.select.expert_choice import ExpertChoice
from gatelab.routers.select.grouping import Group
from gatelab.routers.select.topk import TopK

__all__ = ["AllExperts", "BalancedAssignment", "ExpertChoice", "Group", "RandomK", "RoundRobin", "TopK"]
