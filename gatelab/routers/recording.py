"""Saving a `Routing` to a file and reading it back: NumPy's npz, versioned, without pickle.

Each tensor is one array of the archive under the name of its field, `losses/<name>` or `statistics/<name>`;
`format` and `version` say what the file is. Nothing in it is executed, nothing is read that its size does not bound.
"""

from __future__ import annotations

import math
import os
import tempfile
import zipfile
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from gatelab.routers.routing import Routing

FORMAT, VERSION = "gatelab.routing", 1
MAX_BYTES = 8 << 30
INTEGERS = ("token_index", "expert_offsets", "choice", "requested")
FLOATS = ("weights", "router_logits", "scores", "probabilities")


def save_routing(routing: Routing, path: str | PathLike[str]) -> None:
    """Write a routing, without its tail, to `path`: complete or not at all.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    routing = routing.compact()
    tensors = {name: getattr(routing, name) for name in (*INTEGERS, *FLOATS)}
    if routing.token_mask is not None:
        tensors["token_mask"] = routing.token_mask
    tensors |= {f"losses/{name}": value for name, value in routing.losses.items()}
    tensors |= {f"statistics/{name}": value for name, value in routing.statistics.items()}
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    arrays |= {"format": np.array(FORMAT), "version": np.array(VERSION)}
    arrays |= {"num_tokens": np.array(routing.num_tokens), "weights_on_input": np.array(routing.weights_on_input)}
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_routing(path: str | PathLike[str], *, max_bytes: int = MAX_BYTES) -> Routing:
    """Read what `save_routing` wrote, onto the CPU.

    Args:
        path: of the file.
        max_bytes: refuse to unpack more than this.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is truncated, not a saved routing, of another version, too large, or contradicts itself.
    """
    try:
        arrays = _arrays(Path(path), max_bytes)
    except (zipfile.BadZipFile, EOFError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no saved routing: {str(error).splitlines()[0]}") from error
    problem = _problem(arrays)
    if problem:
        raise ValueError(f"{path} is no consistent routing: {problem}")
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


def _arrays(path: Path, max_bytes: int) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        if size > max_bytes:
            raise ValueError(f"it unpacks to {size:,} bytes; pass max_bytes= to allow more than {max_bytes:,}")
        arrays = {entry.filename.removesuffix(".npy"): _array(archive, entry) for entry in archive.infolist()}
    if str(arrays.pop("format")) != FORMAT:
        raise ValueError("its format is another")
    if (version := int(arrays.pop("version"))) != VERSION:
        raise ValueError(f"it has version {version}, this library reads {VERSION}")
    return arrays


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """One npy member. NumPy's own reader would allocate whatever the header claims before reading a byte."""
    with archive.open(entry) as member:
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(member)]
        shape, column_major, dtype = read_header(member)
        nbytes = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or column_major or member.tell() + nbytes != entry.file_size:
            raise ValueError(f"{entry.filename} is {dtype} of shape {shape} in {entry.file_size} bytes")
        return np.frombuffer(bytearray(member.read(nbytes)), dtype=dtype).reshape(shape)


def _problem(arrays: dict[str, np.ndarray]) -> str | None:
    """What contradicts the contract of `Routing`, or None."""
    missing = {*INTEGERS, *FLOATS, "num_tokens", "weights_on_input"} - arrays.keys()
    if missing:
        return f"{', '.join(sorted(missing))} missing"
    T, E = int(arrays["num_tokens"]), len(arrays["expert_offsets"]) - 1
    N = len(arrays["token_index"])
    shapes = {"token_index": (N,), "choice": (N,), "weights": (N,), "expert_offsets": (E + 1,), "requested": (E,)}
    shapes |= dict.fromkeys(("router_logits", "scores", "probabilities"), (T, E))
    shapes |= {"token_mask": (T,)} if "token_mask" in arrays else {}
    for name, shape in shapes.items():
        array = arrays[name]
        kinds = ("int64",) if name in INTEGERS else ("bool",) if name == "token_mask" else ("float32", "float64")
        if array.shape != shape or array.dtype.name not in kinds:
            return f"{name} is {array.dtype} of shape {array.shape}, {' or '.join(kinds)} of shape {shape} is due"
    offsets, tokens = arrays["expert_offsets"], arrays["token_index"]
    if E < 1 or offsets[0] != 0 or offsets[-1] != N or (np.diff(offsets) < 0).any():
        return "expert_offsets do not ascend from 0 to the number of assignments"
    if N and (tokens.min() < 0 or tokens.max() >= T or arrays["choice"].min() < 0):
        return "token_index or choice is out of range"
    inside = np.ones(max(N - 1, 0), dtype=bool)
    starts = offsets[1:-1]
    inside[starts[(starts > 0) & (starts < N)] - 1] = False
    if (np.diff(tokens)[inside] <= 0).any():
        return "token_index does not ascend inside an expert"
    return None
