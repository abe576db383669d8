"""The text a comparison trains on: bytes, split into training and held-out text, in batches that all gates share."""

from __future__ import annotations

import hashlib
import platform
import sysconfig
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gatelab.bench.errors import BadInput
from gatelab.bench.seeding import seed_of

BYTES = 256
HELD_OUT = 10  # one file in so many, or this share of a single text's end
MAX_BYTES = 2**28
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@dataclass(frozen=True)
class Text:
    """Bytes to train on and bytes held out.

    Attributes:
        source: where they come from, in words.
        train, validation: (n,) uint8.
        sha256: of both, one after the other.
    """

    source: str
    train: Tensor
    validation: Tensor
    sha256: str

    def batch(self, seed: int, step: int, batch_size: int, sequence_length: int) -> Tensor:
        """(B, S + 1) int64: windows of the training text, the same for every gate with this seed at this step."""
        generator = torch.Generator().manual_seed(seed_of("batch", seed, step))
        starts = torch.randint(len(self.train) - sequence_length, (batch_size,), generator=generator)
        return self.train[starts[:, None] + torch.arange(sequence_length + 1)].long()

    def held_out(self, count: int, sequence_length: int) -> Tensor:
        """(at most `count`, S + 1) int64: windows spread evenly over the held-out text, none overlapping."""
        count = min(count, (len(self.validation) - 1) // sequence_length)
        last = len(self.validation) - sequence_length - 1
        starts = torch.linspace(0, last, count, dtype=torch.float64).long()
        return self.validation[starts[:, None] + torch.arange(sequence_length + 1)].long()


def load_text(path: Path | None, sequence_length: int) -> Text:
    """The Python standard library's own sources, a file, or every text file below a directory.

    Of a directory one file in ten is held out (those whose paths have the smallest checksums), of a single file the
    last tenth.

    Raises:
        BadInput: missing, empty, too large, or shorter than a sequence on either side.
    """
    try:
        if path is None:
            path = Path(sysconfig.get_paths()["stdlib"])
            files = [f for f in sorted(path.rglob("*.py")) if not SKIPPED & set(f.relative_to(path).parts)]
            source = f"the standard library of Python {platform.python_version()} ({len(files)} files)"
        elif path.is_dir():
            files = [f for f in sorted(path.rglob("*")) if f.is_file() and not _hidden(f.relative_to(path))]
            source = f"{path.resolve().name} ({len(files)} files)"
        else:
            files, source = [path], path.name
        train, validation = _split(path, files)
    except OSError as error:
        raise BadInput(f"--text {path} cannot be read: {error.strerror}; pass a text file or a directory") from None
    if not train and not validation:
        raise BadInput(f"--text {path} holds no text; pass a text file or a directory of them")
    for part, held in (("to train on", train), ("held out", validation)):
        if len(held) <= sequence_length:
            raise BadInput(
                f"--text {path} has {len(held)} bytes {part}, a sequence needs {sequence_length + 1}; "
                "pass more text or a smaller --sequence-length"
            )
    return Text(source, _tensor(train), _tensor(validation), hashlib.sha256(train + validation).hexdigest())


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _split(root: Path, files: list[Path]) -> tuple[bytes, bytes]:
    if len(files) == 1:
        data = _bytes_of(files)
        cut = len(data) - len(data) // HELD_OUT
        return data[:cut], data[cut:]
    by_checksum = sorted(files, key=lambda file: zlib.crc32(file.relative_to(root).as_posix().encode()))
    held_out = set(by_checksum[: -(-len(files) // HELD_OUT)])
    return _bytes_of(f for f in files if f not in held_out), _bytes_of(f for f in files if f in held_out)


def _bytes_of(files: Iterable[Path]) -> bytes:
    """Their contents, one after the other; a file with a zero byte is no text and left out."""
    parts, total = [], 0
    for file in files:
        total += file.stat().st_size
        if total > MAX_BYTES:
            raise BadInput(f"--text has more than {MAX_BYTES // 2**20} MiB; pass a part of it")
        data = file.read_bytes()
        if b"\0" not in data:
            parts.append(data)
    return b"".join(parts)


def _tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())
