"""What a comparison is: every number that decides its result."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from gatelab.bench.errors import BadInput
from gatelab.kernels.backend import implementation

BASELINES = ("dense", "random", "round-robin")
DEFAULT_ROUTERS = (
    "topk-softmax",
    "attention",
    "attention-lfa",
    "expert-choice",
    "balanced-assignment",
    *BASELINES,
)
ATTENTION = ("plain", "lfa")
COUNTS = (
    *("steps", "batch_size", "sequence_length", "hidden_size", "num_layers", "num_heads", "num_experts", "top_k"),
    *("intermediate_size", "seeds"),
)
MOST = {"seeds": 1000}
MOST_OTHERWISE = 2**24
MOST_NUMBERS = 2**30  # 4 GiB of weights, or of what one step computes
MOST_SEED = 2**53  # larger ones are not exact in everybody's JSON


@dataclass(frozen=True)
class CompareConfig:
    """The small model and its training; every router gets the same.

    Attributes:
        routers: names, as `gatelab.create_router` takes them.
        steps: optimizer steps per cell.
        batch_size, sequence_length: B and S, in bytes of text.
        hidden_size: D.
        num_layers, num_heads: of the transformer.
        num_experts, top_k: E and K.
        intermediate_size: I of one expert of a gate that costs nothing and takes K experts per token. It sets the
            active FLOPs that every other gate and its experts share.
        attention: `plain`, or `lfa`: queries and keys see the LFA-filtered sequence.
        learning_rate: peak, after a warm-up and before a cosine decay.
        first_seed, seeds: cells run with seeds first_seed … first_seed + seeds − 1.
        device: `cpu`, `cuda` or `cuda:1`.

    Raises:
        BadInput: a value that cannot be.
    """

    routers: tuple[str, ...] = DEFAULT_ROUTERS
    steps: int = 600
    batch_size: int = 16
    sequence_length: int = 64
    hidden_size: int = 64
    num_layers: int = 2
    num_heads: int = 4
    num_experts: int = 8
    top_k: int = 2
    intermediate_size: int = 128
    attention: str = "plain"
    learning_rate: float = 6e-3
    first_seed: int = 0
    seeds: int = 2
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.routers:
            raise BadInput("--routers is empty; name at least one, see `gatelab list`")
        twice = [name for i, name in enumerate(self.routers) if name in self.routers[:i]]
        if twice:
            raise BadInput(f"--routers names {twice[0]!r} twice; each may stand once")
        for name in COUNTS:
            value, most = getattr(self, name), MOST.get(name, MOST_OTHERWISE)
            if value < 1:
                raise BadInput(f"{flag(name)} {value} must be at least 1")
            if value > most:
                raise BadInput(f"{flag(name)} {value} must be at most {most}")
        if self.top_k > self.num_experts:
            raise BadInput(f"--top-k {self.top_k} is more than --num-experts {self.num_experts}; choose at most that")
        if self.hidden_size % (2 * self.num_heads):
            raise BadInput(f"--hidden-size {self.hidden_size} must be a multiple of {2 * self.num_heads}")
        if self.attention not in ATTENTION:
            raise BadInput(f"--attention {self.attention} is unknown; choose one of {', '.join(ATTENTION)}")
        if not 0 < self.learning_rate <= 1:  # Adam moves every weight by about so much in a step
            raise BadInput(f"--learning-rate {self.learning_rate} must be above 0 and at most 1")
        if abs(self.first_seed) > MOST_SEED:
            raise BadInput(f"--seed {self.first_seed} must lie within ±{MOST_SEED}")
        if self._numbers > MOST_NUMBERS:
            largest = max(COUNTS, key=lambda name: getattr(self, name) / getattr(CompareConfig, name))
            raise BadInput(
                f"{flag(largest)} {getattr(self, largest)} needs {self._numbers:.1e} numbers in memory, more than "
                f"{MOST_NUMBERS:.1e}; choose smaller sizes"
            )
        check_device(self.device)

    @property
    def _numbers(self) -> int:
        """Weights of the model, or what its layers compute in one step, whichever is more; rounded down."""
        D, L, E, I = self.hidden_size, self.num_layers, self.num_experts, self.top_k * self.intermediate_size
        weights = L * (4 * D * D + 3 * E * D * I)
        step = self.batch_size * self.sequence_length * L * (self.num_heads * self.sequence_length + E * D + I)
        return max(weights, step)


def flag(name: str) -> str:
    """The command-line name of an attribute."""
    return "--" + name.replace("_", "-")


def check_device(name: str) -> None:
    """Raise BadInput unless `name` is a device of this machine that the bench and its kernels can use."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda") or (device.type == "cpu" and name != "cpu"):
        raise BadInput(f"--device {name} is unknown; choose cpu, cuda or cuda:N")
    if wanted := os.environ.get("GATELAB_BACKEND"):
        try:
            implementation("expert_mlp", device.type)
        except (ValueError, ImportError, RuntimeError) as error:
            raise BadInput(f"GATELAB_BACKEND {wanted} cannot be used: {error}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadInput(f"--device {name} is not there: torch sees {torch.cuda.device_count()} CUDA devices; use cpu")
