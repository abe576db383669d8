"""What cannot be converted, and whose failure it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

NO_ROOM = (MemoryError, torch.OutOfMemoryError)  # says nothing about a block


class UnsupportedBlock(ValueError):
    """A block that would not be the same after conversion; the message names what was not understood.

    Where another exception led to it, that is its `__cause__`.
    """


class NotOneLayer(UnsupportedBlock):
    """A block that is no MoE layer by itself. In a whole model it stays as it is, and what it holds is converted."""


@contextmanager
def running() -> Iterator[None]:
    """Around a call of the block's own code: what that raises is the block's failure, not one of reading it.

    Raises:
        UnsupportedBlock: in place of what the block raises, which is its `__cause__`.
    """
    try:
        yield
    except (UnsupportedBlock, *NO_ROOM):
        raise
    except Exception as error:
        raise UnsupportedBlock(f"running it on random hidden states fails with {in_a_line(error)}") from error


def in_a_line(error: Exception) -> str:
    """Type and first line of an exception."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
