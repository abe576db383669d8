"""What the gates of a published checkpoint do with text: `run`, the library behind `gatelab trace`."""

from gatelab.bench.trace.trace import run

__all__ = ["run"]
