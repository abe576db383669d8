"""Balance: what keeps the load even. Losses, noise, bias and price; every hook is optional."""

from gatelab.routers.balance.base import Balance
from gatelab.routers.balance.bias import SignBias
from gatelab.routers.balance.chosen import ChosenLoss
from gatelab.routers.balance.devices import CommunicationLoss, DeviceLoss
from gatelab.routers.balance.losses import EntropyLoss, GShardLoss, SwitchLoss, ZLoss
from gatelab.routers.balance.noise import GaussianNoise, InputJitter, LearnedNoise
from gatelab.routers.balance.prices import Prices
from gatelab.routers.balance.variation import ImportanceLoss, LoadLoss

__all__ = [
    "Balance",
    "ChosenLoss",
    "CommunicationLoss",
    "DeviceLoss",
    "EntropyLoss",
    "GShardLoss",
    "GaussianNoise",
    "ImportanceLoss",
    "InputJitter",
    "LearnedNoise",
    "LoadLoss",
    "Prices",
    "SignBias",
    "SwitchLoss",
    "ZLoss",
]
