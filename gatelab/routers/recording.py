"""Saving a `Routing` to a file and reading it back: NumPy's npz, versioned, without pickle.

Each tensor is one array of the archive under the name of its field, `losses/<name>` or `statistics/<name>`;
`format` and `version` say what the file is. Nothing in it is executed, nothing is read that its size does not bound.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gatelab.routers.consistency import problem
from gatelab.routers.npz import read_npz, write_npz
from gatelab.routers.routing import Routing

FORMAT, VERSION = "gatelab.routing", 1
MAX_BYTES = 8 << 30
INTEGERS = ("token_index", "expert_offsets", "choice", "requested")
FLOATS = ("weights", "router_logits", "scores", "probabilities")


def save_routing(routing: Routing, path: str | PathLike[str]) -> None:
    """Write a routing, without its tail, to `path`: complete or not at all.

    Floats narrower than float32 are written as float32, which holds each of them exactly. Whether the routing keeps
    its contract is not looked at here, but when it is read.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    routing = routing.compact()
    tensors = {name: getattr(routing, name) for name in (*INTEGERS, *FLOATS)}
    if routing.token_mask is not None:
        tensors["token_mask"] = routing.token_mask
    tensors |= {f"losses/{name}": value for name, value in routing.losses.items()}
    tensors |= {f"statistics/{name}": value for name, value in routing.statistics.items()}
    arrays = {name: _array(tensor) for name, tensor in tensors.items()}
    arrays |= {"format": np.array(FORMAT), "version": np.array(VERSION, np.int64)}
    arrays |= {"num_tokens": np.array(routing.num_tokens, np.int64)}
    arrays |= {"weights_on_input": np.array(routing.weights_on_input)}
    write_npz(Path(path), arrays)


def _array(tensor: Tensor) -> np.ndarray:
    """NumPy has no bfloat16."""
    narrow = tensor.is_floating_point() and tensor.itemsize < 4
    return (tensor.float() if narrow else tensor).detach().cpu().numpy()


def load_routing(path: str | PathLike[str], *, max_bytes: int = MAX_BYTES) -> Routing:
    """Read what `save_routing` wrote, onto the CPU.

    Args:
        path: of the file.
        max_bytes: refuse to unpack more than this.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is truncated, not a saved routing, of another version, too large, or contradicts itself.
    """
    path = Path(path)
    arrays = read_npz(path, max_bytes)
    if foreign := _foreign(arrays.pop("format", None), arrays.pop("version", None)):
        raise ValueError(f"{path} is no saved routing: {foreign}")
    if contradiction := problem(arrays):
        raise ValueError(f"{path} is no consistent routing: {contradiction}")
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return Routing(
        **{name: tensors[name] for name in (*INTEGERS, *FLOATS)},
        num_tokens=int(arrays["num_tokens"]),
        token_mask=tensors.get("token_mask"),
        losses=_below("losses/", tensors),
        statistics=_below("statistics/", tensors),
        weights_on_input=bool(arrays["weights_on_input"]),
    )


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _foreign(name: np.ndarray | None, version: np.ndarray | None) -> str | None:
    """Why a file with this `format` and `version` is not for us, or None."""
    if name is None or name.shape or str(name) != FORMAT:
        return "its format is another"
    if version is None or version.shape or version.dtype != np.int64:
        return "it has no version"
    return None if version == VERSION else f"it has version {version}, this library reads {VERSION}"
