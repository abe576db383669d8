"""Select: scores to who goes where. `select(scores (T, E), ctx) -> Selection`."""

from gatelab.routers.select.assignment import BalancedAssignment
from gatelab.routers.select.baselines import AllExperts, RandomK, RoundRobin
from gatelab.routers.select.dynamic import Positive, TopP
from gatelab.routers.select.expert_choice import ExpertChoice
from gatelab.routers.select.given import ByLabel, Replay
from gatelab.routers.select.grouping import Group
from gatelab.routers.select.sinkhorn import SinkhornTopK
from gatelab.routers.select.topk import TopK

__all__ = [
    "AllExperts",
    "BalancedAssignment",
    "ByLabel",
    "ExpertChoice",
    "Group",
    "Positive",
    "RandomK",
    "Replay",
    "RoundRobin",
    "SinkhornTopK",
    "TopK",
    "TopP",
]
