"""Arrays in and out of a file that may be damaged or hostile: NumPy's npz, without pickle, whole or not at all."""

from __future__ import annotations

import math
import os
import secrets
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy


def write_npz(path: Path, arrays: dict[str, Any]) -> None:
    """Write to a temporary file beside `path`, then rename it.

    Raises:
        OSError: it cannot be written, names `path`; nothing is left behind.
    """
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as file:
            np.savez(file, **arrays)
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_npz(path: Path, max_bytes: int) -> dict[str, np.ndarray]:
    """The arrays of a file by name. Nothing is allocated that the size of the file, unpacked, does not bound.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, larger than `max_bytes` when unpacked, or holds what is no plain array.
    """
    with path.open("rb") as file:
        try:
            return _members(file, max_bytes)
        except Exception as error:  # zipfile and NumPy raise a dozen kinds, depending on which byte is wrong
            what = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{path} is no saved routing: {what}") from error


def _members(file: BinaryIO, max_bytes: int) -> dict[str, np.ndarray]:
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        if size > max_bytes:
            raise ValueError(f"it unpacks to {size:,} bytes; pass max_bytes= to allow more than {max_bytes:,}")
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if name in arrays:
                raise ValueError(f"it holds {name} twice")
            arrays[name] = _array(archive, entry)
    return arrays


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """One npy member. NumPy's own reader would allocate whatever the header claims before reading a byte."""
    with archive.open(entry) as member:
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(member)]
        shape, column_major, dtype = read_header(member)
        nbytes = math.prod(shape) * dtype.itemsize
        plain = dtype.isnative and not dtype.hasobject and not column_major
        if not plain or member.tell() + nbytes != entry.file_size:
            raise ValueError(f"{entry.filename} is {dtype} of shape {shape} in {entry.file_size} bytes")
        return np.frombuffer(bytearray(member.read(nbytes)), dtype=dtype).reshape(shape)
