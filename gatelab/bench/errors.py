"""What ends a command with one line instead of a traceback."""

import os
import textwrap
import traceback

import torch

import gatelab

LONGEST = 400  # torch's messages may hold pages
LIBRARIES = tuple(f"{module.__path__[0]}{os.sep}" for module in (gatelab, torch))


class BadInput(ValueError):
    """The caller asked for something impossible; the message names the argument, the value and the remedy."""


class CannotWrite(OSError):
    """The run directory does not take a file: full, read-only, in use. The message is one line."""


class CellFailed(RuntimeError):
    """Cells of a comparison ended without a result; all others are there."""


def told(error: BaseException) -> str:
    """Its kind, its message and the line of code that raised it, in one line.

    The line is the last that is neither torch's nor ours, where there is one: a gate may be the caller's.
    """
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith((*LIBRARIES, "<"))]
    place = (theirs or frames)[-1]
    message = textwrap.shorten(f"{type(error).__name__}: {error}", LONGEST, placeholder=" …")
    return f"{message.removesuffix(':')} ({place.filename}, line {place.lineno})"
