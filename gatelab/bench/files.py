"""Files that are there whole or not at all, and readers that say what is wrong with one."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gatelab.bench.errors import BadInput, CannotWrite

SCHEMA = 1
TEMPORARY = ".tmp-"


def write(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Write to a temporary name beside `path`, then rename: a kill at any moment leaves the old file or the new one.

    Raises:
        CannotWrite: full disk, read-only directory; what was there before is untouched.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {error.strerror or error}; nothing finished is lost") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(remedy: str) -> Iterator[None]:
    """For what others write inside the block.

    Raises:
        CannotWrite: full disk, read-only directory; names the file.
    """
    try:
        yield
    except CannotWrite:
        raise
    except OSError as error:
        raise CannotWrite(f"cannot write {where_and_why(error)}; {remedy}") from error


def where_and_why(error: OSError) -> str:
    """The file and the reason, where the error knows them: a full disk is noticed when the name is forgotten."""
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """As `write`; NaN and infinities, which are not JSON, become null."""
    write(path, lambda file: file.write(json.dumps(plain(value), indent=1, allow_nan=False).encode() + b"\n"))


def read_json(path: Path, kind: str, remedy: str) -> dict[str, Any]:
    """The JSON object in a file of ours.

    Raises:
        BadInput: unreadable, truncated, not ours, of another kind, or written by a newer version.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}; {remedy}") from None
    except (ValueError, RecursionError):
        raise BadInput(f"{path} is truncated or not JSON; {remedy}") from None
    return checked(path, value, kind, remedy)


def checked(path: Path, value: Any, kind: str, remedy: str) -> dict[str, Any]:
    """`value` if it says that it is of this kind and of a schema known here.

    Raises:
        BadInput: it does not.
    """
    schema = value.get("schema") if isinstance(value, dict) else None
    if type(schema) is not int or schema < 1 or value.get("kind") != kind:
        raise BadInput(f"{path} is no {kind} file of gatelab; {remedy}")
    if schema > SCHEMA:
        raise BadInput(f"{path} has schema {schema}, newer than {SCHEMA}, the one known here; update gatelab")
    return value


def remove_temporary(directory: Path) -> None:
    """Delete what a killed run of ours left half-written in a directory."""
    for path in directory.glob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """`value` as JSON can hold it."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
