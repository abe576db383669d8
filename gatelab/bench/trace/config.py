"""What a trace is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gatelab.bench import files
from gatelab.bench.config import check_device, flag
from gatelab.bench.errors import BadInput

DTYPES = ("auto", "float32", "bfloat16", "float16")
ROUTING, INDEX = "routing", "index.json"


@dataclass(frozen=True)
class TraceConfig:
    """How much text, in which pieces, on what.

    Attributes:
        tokens: at most so many of each text.
        sequence_length: S, tokens of a window; each window is read by itself.
        record: tokens of each text whose routing is saved, rounded up to whole windows; 0 = none.
        devices: G of the straggler factor; None = for each layer the largest divisor of its E up to 8.
        dtype: the model's; `auto` = the checkpoint's own.
        device: `cpu`, `cuda` or `cuda:1`.
        trust_remote_code: run Python code that lies in the model's folder.
        allow_pickle: read pickled weights where there are no safetensors.
        seed: of gates that draw even in evaluation.

    Raises:
        BadInput: a value that cannot be.
    """

    tokens: int = 100_000
    sequence_length: int = 512
    record: int = 2048
    devices: int | None = None
    dtype: str = "auto"
    device: str = "cpu"
    trust_remote_code: bool = False
    allow_pickle: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("tokens", 1), ("sequence_length", 2), ("record", 0), ("devices", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise BadInput(f"{flag(name)} {value} must be at least {least}")
        if self.dtype not in DTYPES:
            raise BadInput(f"--dtype {self.dtype} is unknown; choose one of {', '.join(DTYPES)}")
        check_device(self.device)


def check_texts(texts: list[Path]) -> list[str]:
    """What to call each text: its file name, or its path where names repeat.

    Raises:
        BadInput: none, or one twice.
    """
    if not texts:
        raise BadInput("--text is missing; name at least one text file")
    twice = [path for i, path in enumerate(texts) if path.resolve() in {other.resolve() for other in texts[:i]}]
    if twice:
        raise BadInput(f"--text names {twice[0]} twice; each may stand once")
    names = [path.name for path in texts]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, texts, strict=True)]


def check_out(out_dir: Path) -> None:
    """Make the directory.

    Raises:
        BadInput: it cannot be made, belongs to a comparison, or holds something else under a name of ours.
    """
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out {out_dir} cannot be written: {error.strerror or error}; pass another") from error
    if (out_dir / "run.json").exists():
        raise BadInput(f"--out {out_dir} holds a `gatelab compare`; pass another")
    if (out_dir / ROUTING).exists():
        files.read_json(out_dir / ROUTING / INDEX, "routing", "move it away or pass another --out")
