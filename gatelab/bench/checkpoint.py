"""The state of a cell under way, in a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gatelab.bench import files
from gatelab.bench.errors import BadInput

REMEDY = "delete it and its cell starts again"


@dataclass(frozen=True)
class Checkpoint:
    """A file of tensors and plain values, never of code.

    Attributes:
        path: the file.
        signature: kind, schema, and whose checkpoint it is.
    """

    path: Path
    signature: dict[str, Any]

    def write(self, state: dict[str, Any]) -> None:
        """Replace what is there by this state; killed at any moment, one of the two is there whole."""
        files.write(self.path, lambda file: torch.save({**self.signature, "state": state}, file))

    def read(self) -> dict[str, Any] | None:
        """The state, or None where there is no file.

        Raises:
            BadInput: the file is truncated, of a newer version, or not this cell's.
        """
        if not self.path.exists():
            return None
        try:
            value = torch.load(self.path, weights_only=True, map_location="cpu")
        except Exception:  # whatever a broken archive makes torch raise
            raise BadInput(f"{self.path} is truncated or no checkpoint of gatelab; {REMEDY}") from None
        files.checked(self.path, value, "checkpoint", REMEDY)
        if not self.signature.items() <= value.items():
            raise BadInput(f"{self.path} belongs to another run; {REMEDY}")
        if not isinstance(value.get("state"), dict):
            raise BadInput(f"{self.path} is damaged: it has no state; {REMEDY}")
        return value["state"]
