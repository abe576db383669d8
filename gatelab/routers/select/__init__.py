"""Select: scores to who goes where. `select(scores (T, E), ctx) -> Selection`."""

from gatelab.routers.select.assignment import BalancedAssignment
from gatelab.routers.select.baselines import AllExperts, RandomK, RoundRobin
from gatelab.routers.select.capacity import Capacity, Drop
from gatelab.routers.select.depth import DepthChoice
from gatelab.routers.select.dynamic import Positive, TopP
from gatelab.routers.select.expert_choice import ExpertChoice
from gatelab.routers.select.given import ByLabel, Replay
from gatelab.routers.select.group_limited import GroupLimitedTopK, fit_groups
from gatelab.routers.select.grouping import Group
from gatelab.routers.select.hashing import HashTable, balanced_table, hash_table, random_table
from gatelab.routers.select.recycle import Recycle
from gatelab.routers.select.second import RandomSecond
from gatelab.routers.select.sinkhorn import SinkhornTopK
from gatelab.routers.select.sparse_mixer import SparseMixer
from gatelab.routers.select.topk import TopK

__all__ = [
    "AllExperts",
    "BalancedAssignment",
    "ByLabel",
    "Capacity",
    "DepthChoice",
    "Drop",
    "ExpertChoice",
    "Group",
    "GroupLimitedTopK",
    "HashTable",
    "Positive",
    "RandomK",
    "RandomSecond",
    "Recycle",
    "Replay",
    "RoundRobin",
    "SinkhornTopK",
    "SparseMixer",
    "TopK",
    "TopP",
    "balanced_table",
    "fit_groups",
    "hash_table",
    "random_table",
]
