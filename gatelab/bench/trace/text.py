"""Text as windows of token ids, read and tokenised piece by piece: no text is ever held whole."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatelab.bench.errors import BadInput
from gatelab.bench.trace.config import TraceConfig

PIECE = 1 << 16  # bytes read at a time
MIN_TOKENS = 16
MOST_UNKNOWN = 0.5


@dataclass(frozen=True)
class Text:
    """A file that can be read.

    Attributes:
        name: in the report.
        path: of the file.
        num_tokens: that are traced.
        unknown: how many of them the tokenizer does not know.
    """

    name: str
    path: Path
    num_tokens: int
    unknown: int


class Reader:
    """Tokenises files.

    Args:
        tokenizer: of transformers.
        config: how many tokens in which windows.

    Attributes:
        prefix: ids that the tokenizer puts before a text (often one, BOS). Every window begins with them, so that each
            is read as a text of its own; they are routed and not counted.
    """

    def __init__(self, tokenizer: Any, config: TraceConfig) -> None:
        self.tokenizer, self.config = tokenizer, config
        bare, full = self._encode("a"), tokenizer("a").input_ids
        self.prefix: list[int] = full[: full.index(bare[0])] if bare and bare[0] in full else []
        self.length = config.sequence_length - len(self.prefix)
        if self.length < 1:
            raise BadInput(f"--sequence-length {config.sequence_length} leaves no token beside those put before a text")

    def windows(self, path: Path) -> Iterator[list[int]]:
        """Token ids of a file, without the prefix: windows of `length`, the last one shorter.

        Raises:
            BadInput: it cannot be read, or is not UTF-8.
        """
        left, buffer = self.config.tokens, []
        for piece in pieces(path):
            buffer += self._encode(piece)
            while left and len(buffer) >= min(self.length, left):
                window, buffer = buffer[: min(self.length, left)], buffer[self.length :]
                left -= len(window)
                yield window
            if not left:
                return
        if buffer:
            yield buffer

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def look_through(self, path: Path, name: str, on_progress: Callable[[int], None]) -> tuple[Text, Tensor]:
        """Read a file once, so that what is wrong with it shows before a model is loaded.

        Returns:
            The text, and how often each token id occurs, (largest id + 1,) int64.

        Raises:
            BadInput: it cannot be read, is not UTF-8, is empty or too short, or the tokenizer does not know its tokens.
        """
        counts, num_tokens = torch.zeros(0, dtype=torch.int64), 0
        for window in self.windows(path):
            counts = added(counts, torch.bincount(torch.tensor(window)))
            num_tokens += len(window)
            on_progress(num_tokens)
        if num_tokens < MIN_TOKENS:
            what = f"has {num_tokens} tokens" if num_tokens else "holds no text"
            raise BadInput(f"--text {path} {what}; a trace needs at least {MIN_TOKENS} tokens")
        unknown = self.tokenizer.unk_token_id
        unknown = int(counts[unknown]) if unknown is not None and unknown < len(counts) else 0
        if unknown > MOST_UNKNOWN * num_tokens:
            share = f"{unknown / num_tokens:.0%}"
            raise BadInput(
                f"--text {path}: the tokenizer does not know {share} of its tokens; pass text it was made for"
            )
        return Text(name, path, num_tokens, unknown), counts


def added(a: Tensor, b: Tensor) -> Tensor:
    """The sum of two vectors, the shorter one continued by zeros."""
    short, long = sorted((a, b), key=len)
    return long + torch.nn.functional.pad(short, (0, len(long) - len(short)))


def pieces(path: Path) -> Iterator[str]:
    """A UTF-8 file in pieces that end with a line, or where a line is long anywhere.

    Raises:
        BadInput: it cannot be read, or is not UTF-8.
    """
    decoder, rest, done = codecs.getincrementaldecoder("utf-8-sig")(), "", 0
    try:
        with path.open("rb") as file:
            while True:
                data = file.read(PIECE)
                rest += decoder.decode(data, final=not data)
                done += len(data)
                if not data:
                    break
                cut = rest.rfind("\n") + 1 or (len(rest) if len(rest) > PIECE else 0)
                if cut:
                    yield rest[:cut]
                rest = rest[cut:]
    except OSError as error:
        raise BadInput(f"--text {path} cannot be read: {error.strerror}; pass a text file") from None
    except UnicodeDecodeError as error:
        where = f"byte {done - len(decoder.getstate()[0]) + error.start:,}"
        raise BadInput(f"--text {path} is not UTF-8 ({error.reason} at {where}); convert it") from None
    if rest:
        yield rest
