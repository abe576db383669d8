"""Score: hidden states to raw router logits. `score(ctx) -> (T, E)`."""

from gatelab.routers.score.attention import AttentionScore
from gatelab.routers.score.cosine import CosineScore
from gatelab.routers.score.filtered import FilteredScore
from gatelab.routers.score.linear import LinearScore
from gatelab.routers.score.mlp import HadamardScore, MLPScore
from gatelab.routers.score.none import NoScore
from gatelab.routers.score.pathway import PathwayScore
from gatelab.routers.score.slots import SlotScore

__all__ = [
    "AttentionScore",
    "CosineScore",
    "FilteredScore",
    "HadamardScore",
    "LinearScore",
    "MLPScore",
    "NoScore",
    "PathwayScore",
    "SlotScore",
]
