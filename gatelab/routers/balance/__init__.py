"""Balance: what keeps the load even. Losses, noise, bias and price; every hook is optional."""

from gatelab.routers.balance.base import Balance
from gatelab.routers.balance.bias import SignBias
from gatelab.routers.balance.losses import SwitchLoss, ZLoss
from gatelab.routers.balance.prices import Prices

__all__ = ["Balance", "Prices", "SignBias", "SwitchLoss", "ZLoss"]
