"""What a house has published about its model, kept as printed, beside the geometry that it is checked against."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from gatelab.zoo.geometry import Geometry
from gatelab.zoo.parts import MoE

UNITS = {"M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Figure:
    """A number as printed, such as "46.7B": its digits say how exactly it was meant.

    Args:
        text: digits and a unit of M, G, B or T.
        unverified: recalled or second-hand, not read in the source.
    """

    text: str
    unverified: bool = False

    def __post_init__(self) -> None:
        if self.text[-1] not in UNITS:
            raise ValueError(f"a figure ends in one of {'/'.join(UNITS)}, got {self.text!r}")

    @property
    def value(self) -> int:
        return int(Decimal(self.text[:-1]) * UNITS[self.text[-1]])

    def error(self, computed: float) -> float:
        """Relative error of `computed` against the printed value."""
        return computed / self.value - 1

    def agrees(self, computed: float, tolerance: float = 0.02) -> bool:
        """True within the relative `tolerance`, or where `computed` rounds to the printed digits."""
        last_digit = Decimal(1).scaleb(int(Decimal(self.text[:-1]).as_tuple().exponent)) * UNITS[self.text[-1]]
        return abs(self.error(computed)) <= tolerance or abs(computed - self.value) <= float(last_digit) / 2

    def __str__(self) -> str:
        return self.text + ("?" if self.unverified else "")


@dataclass(frozen=True)
class PublishedFlops:
    """A published FLOP count with the convention behind it.

    Args:
        per_token: FLOPs.
        convention: "2N" = forward, 2 × active parameters as the house counts them and nothing for attention;
            "training" = forward and backward, attention included.
        source: where the figure stands.
        context: sequence length of the "training" convention.
    """

    per_token: float
    convention: Literal["2N", "training"]
    source: str
    context: int = 4096


@dataclass(frozen=True, kw_only=True)
class Model:
    """A disclosed system: its geometry, and what was published about it.

    Args:
        name: as in the published table.
        geometry: from configuration and code.
        routing: how tokens are routed, in words.
        source: where the geometry was read.
        total, active: published parameter counts.
        flops: published FLOPs per token, if any.
        notes: what is assumed, what is not counted, why a figure differs. "(unverified)" marks what was not read.
        disputed: why the published total cannot be true of this geometry; empty where it can.
        aliases: further names to look it up by.
    """

    name: str
    geometry: Geometry
    routing: str
    source: str
    total: Figure
    active: Figure
    flops: PublishedFlops | None = None
    notes: tuple[str, ...] = ()
    disputed: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def moe(self) -> MoE:
        """The sparse layer; no published model has two kinds of it."""
        ((_, moe), *_) = self.geometry.moes()
        return moe

    def active_conventions(self) -> dict[str, int]:
        """The active parameters in every convention in use, by its name."""
        conventions = {
            "all": self.geometry.active_params,
            "no input embedding": self.geometry.active_params_no_input_embedding,
            "no embeddings": self.geometry.active_params_no_embeddings,
        }
        idle = self.geometry.mean_idle_params
        if idle:
            conventions |= {f"{name}, mean token": active - idle for name, active in conventions.items()}
        return conventions

    def active_convention(self) -> str:
        """The convention nearest to the published active parameters (the first, where tied tables make two equal)."""
        conventions = self.active_conventions()
        return min(conventions, key=lambda name: abs(self.active.error(conventions[name])))

    def published_flops_from_geometry(self) -> float | None:
        """What the published FLOPs per token are by geometry, in their own convention; None if none are published."""
        if self.flops is None:
            return None
        if self.flops.convention == "training":
            return self.geometry.training_flops_per_token(self.flops.context)
        return 2 * self.active_conventions()[self.active_convention()]


@dataclass(frozen=True)
class Undisclosed:
    """A system whose shape is not public: what is known, and the disclosed relative to look at instead."""

    name: str
    known: str
    stand_in: str | None = None
    aliases: tuple[str, ...] = ()
