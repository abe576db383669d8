"""The routing of the first windows, for `replay`: a folder per window with its token ids and a file per layer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from gatelab.bench import files
from gatelab.bench.trace.config import INDEX, ROUTING
from gatelab.bench.trace.text import Text
from gatelab.routers.routing import Routing


class Recording:
    """Writes into OUT/routing; what an earlier trace recorded there is replaced.

    Args:
        out_dir: as `check_out` leaves it.
        limit: tokens of each text, rounded up to whole windows.
    """

    def __init__(self, out_dir: Path, limit: int) -> None:
        self.folder, self.limit = out_dir / ROUTING, limit
        self.windows: list[dict[str, Any]] = []
        self.num_bytes = 0
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir()
        self._write_index()

    def add(self, text: Text, start: int, ids: Tensor, routings: dict[str, Routing]) -> None:
        """Save a window that begins before the limit.

        Args:
            text: where it is from.
            start: tokens of the text before it.
            ids: (1, S) as the model was given them.
            routings: by layer.
        """
        if start >= self.limit:
            return
        name = f"{len(self.windows):05d}"
        (self.folder / name).mkdir()
        saved = {}
        for layer, routing in routings.items():
            saved[layer] = f"{name}/{layer}.npz"
            routing.save(self.folder / saved[layer])
            self.num_bytes += (self.folder / saved[layer]).stat().st_size
        self.windows.append({"text": text.name, "start": start, "input_ids": ids[0].tolist(), "files": saved})

    def close(self) -> dict[str, Any]:
        """Write the index; returns what trace.json says about the recording."""
        self._write_index()
        return {"folder": ROUTING, "limit": self.limit, "windows": len(self.windows), "bytes": self.num_bytes}

    def _write_index(self) -> None:
        value = {"kind": "routing", "schema": files.SCHEMA, "windows": self.windows}
        files.write_json(self.folder / INDEX, value)
