"""Arithmetic in the dtype that is written down, also under autocast."""

import contextlib

import torch


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[object]:
    """A block in which autocast is off; where it is off already, without the cost of saying so."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()
