"""Two runs side by side: what was changed between them, and what that did to each gate that both have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gatelab.bench.report.paired import Difference, Noise, estimate_noise, paired_difference
from gatelab.bench.report.run import SCORE, Run, mean
from gatelab.bench.report.summary import worst_layer
from gatelab.bench.report.tables import Cell, Table, figure
from gatelab.bench.report.words import ABSENT, VERDICTS, cell_list, interval, listing, quantity


@dataclass(frozen=True)
class Pair:
    """Runs `a` and `b` with the names a reader knows them by."""

    a: Run
    b: Run
    name_a: str
    name_b: str

    @property
    def shared(self) -> list[str]:
        """Routers of both runs."""
        return [name for name in self.a.routers if name in self.b.routers]

    @cached_property
    def noise(self) -> Noise:
        """Of one cell in the pairs of each router. A seed need not be as hard for one router as for another."""
        return estimate_noise(
            {
                (which, name): {(name, seed): figure for seed, figure in run.values(name, SCORE).items()}
                for which, run in enumerate((self.a, self.b))
                for name in self.shared
            }
        )

    @property
    def compared(self) -> list[str]:
        """Routers with bits per byte for the same seed in both."""
        return [name for name in self.shared if self.difference(name)]

    def difference(self, router: str, comparisons: int = 1) -> Difference | None:
        """Bits per byte in b minus those in a, on the seeds that both finished; one of so many that hold at once."""
        return paired_difference(self.b.values(router, SCORE), self.a.values(router, SCORE), self.noise, comparisons)

    def why_not(self, router: str) -> str:
        """Why there is no difference."""
        if router in self.a.unscored or router in self.b.unscored:
            return "not scored: no causal form"
        return "no seed scored in both"

    def means(self, router: str) -> tuple[float, float]:
        """Bits per byte in a and in b, over the seeds that both finished: their distance is the difference's mean."""
        a, b = (run.values(router, SCORE) for run in (self.a, self.b))
        return mean(a[seed] for seed in a.keys() & b.keys()), mean(b[seed] for seed in a.keys() & b.keys())


def headline(pair: Pair) -> str:
    compared = pair.compared
    verdicts = [d.verdict for name in compared if (d := pair.difference(name, len(compared)))]
    if not verdicts:
        return f"{pair.name_a} and {pair.name_b} share no finished router and seed"
    better, worse = verdicts.count("better"), verdicts.count("worse")
    left_out = len(pair.shared) - len(compared)
    scored = f"{len(compared)} routers" + (f" ({left_out} more cannot be compared)" if left_out else "")
    score = f"of {scored} {better} clearly better, {worse} clearly worse"
    return f"{pair.name_b} against {pair.name_a}: {score}"


def warnings(pair: Pair) -> list[str]:
    """What forbids reading a difference as an effect."""
    a, b, found = pair.a, pair.b, []
    if a.config["text"] != b.config["text"]:
        found.append("The runs were trained and validated on different text: their bits per byte cannot be compared.")
    if a.machine != b.machine:
        found.append("The machines differ: times and tokens per second cannot be compared.")
    for own, other, name in ((a, b, pair.name_a), (b, a, pair.name_b)):
        if alone := [router for router in own.routers if router not in other.routers]:
            found.append(f"Only in {name}: {listing(alone)}.")
        if own.missing:
            found.append(f"Not finished in {name}: {cell_list(own.missing)}.")
    if left_out := [name for name in pair.shared if name not in pair.compared]:
        found.append(f"Not compared: {listing([f'{name} ({pair.why_not(name)})' for name in left_out])}.")
    return found


def changes(pair: Pair) -> Table:
    """Every setting that the two runs do not share."""
    a, b = ({"gatelab": run.version} | _flat(run.config) | _flat(run.machine) for run in (pair.a, pair.b))
    rows = [
        (Cell(key), Cell(str(a.get(key, ABSENT))), Cell(str(b.get(key, ABSENT))))
        for key in dict.fromkeys([*a, *b])
        if a.get(key) != b.get(key)
    ]
    return Table(("Setting", pair.name_a, pair.name_b), rows)


def quality(pair: Pair) -> Table:
    """Bits per byte in both, and the paired difference."""
    rows = []
    for name in pair.shared:
        d = pair.difference(name)
        change = Cell(interval(d), VERDICTS[d.verdict], d.mean) if d else Cell(ABSENT, pair.why_not(name))
        rows.append((Cell(name), *map(figure, pair.means(name)), change))
    return Table(("Gate", pair.name_a, pair.name_b, f"{pair.name_b} minus {pair.name_a}"), rows)


def balance(pair: Pair) -> Table:
    """MaxVio of the worst layer in both."""
    rows = [
        (Cell(name), *(figure(worst_layer(run, name, "max_violation"), 2) for run in (pair.a, pair.b)))
        for name in pair.shared
    ]
    return Table(("Gate", f"MaxVio, {pair.name_a}", f"MaxVio, {pair.name_b}"), rows)


def cost(pair: Pair) -> Table:
    """Gate time and training speed in both."""
    rows = []
    for name in pair.shared:
        seconds = [run.mean(name, "gate_seconds_per_step") for run in (pair.a, pair.b)]
        speed = [run.mean(name, "tokens_per_second") for run in (pair.a, pair.b)]
        rows.append((Cell(name), *(Cell(quantity(s, "s"), sort=s) for s in seconds), *(figure(v, 0) for v in speed)))
    columns = (f"{what}, {name}" for what in ("Gate time", "Tokens/s") for name in (pair.name_a, pair.name_b))
    return Table(("Gate", *columns), rows)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
