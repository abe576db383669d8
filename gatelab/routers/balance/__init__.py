"""Balance: what keeps the load even. Losses, noise, bias and price; every hook is optional."""

from gatelab.routers.balance.adaptive import DeviationLoss, SparsityLoss
from gatelab.routers.balance.base import Balance
from gatelab.routers.balance.bias import ProportionalBias, SignBias
from gatelab.routers.balance.chosen import ChosenLoss
from gatelab.routers.balance.devices import CommunicationLoss, DeviceLoss
from gatelab.routers.balance.losses import EntropyLoss, GShardLoss, SwitchLoss, ZLoss
from gatelab.routers.balance.noise import GaussianNoise, InputJitter, LearnedNoise
from gatelab.routers.balance.prices import Prices
from gatelab.routers.balance.quantile import QuantilePrices, SweptPrices
from gatelab.routers.balance.threshold import QuantileThreshold
from gatelab.routers.balance.unequal import HeterogeneousLoss
from gatelab.routers.balance.variation import ImportanceLoss, LoadLoss

__all__ = [
    "Balance",
    "ChosenLoss",
    "CommunicationLoss",
    "DeviationLoss",
    "DeviceLoss",
    "EntropyLoss",
    "GShardLoss",
    "GaussianNoise",
    "HeterogeneousLoss",
    "ImportanceLoss",
    "InputJitter",
    "LearnedNoise",
    "LoadLoss",
    "Prices",
    "ProportionalBias",
    "QuantilePrices",
    "QuantileThreshold",
    "SignBias",
    "SparsityLoss",
    "SweptPrices",
    "SwitchLoss",
    "ZLoss",
]
