"""The run in words: what was compared, what came out, and whether it is more than noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from gatelab.bench.report.paired import SAME_WITHIN, Difference, paired_difference
from gatelab.bench.report.run import SCORE, Run
from gatelab.bench.report.words import cell_list, count, interval, listing, number, percent, quantity, signed, size

MOST_NAMES = 6  # more would not be read
FAIR = (
    "Expert width is set so that gate and experts together cost every router the same active FLOPs; for one seed the "
    "batches and every tensor outside gate and experts start the same. Differences are taken seed by seed. What a "
    "sentence here calls clear, or the same, holds with 95 % for all its comparisons at once (Bonferroni), so its "
    "intervals are wider than those in the table, each of which stands alone."
)


@dataclass(frozen=True)
class Summary:
    """Plain text: names in it are as the user gave them, whoever renders it escapes. A finding is a lead and a text."""

    headline: str
    setting: str
    findings: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def summarise(run: Run) -> Summary:
    order = ranking(run)
    findings = [*_quality(run, order), *_noise(run), *_balance(run), *_cost(run), ("Fair because", FAIR)]
    return Summary(_headline(run, order), setting(run), findings, _warnings(run))


def difference(run: Run, router: str, other: str, comparisons: int = 1) -> Difference | None:
    """Bits per byte of `router` minus those of `other`, seed by seed; one of so many that shall hold at once."""
    return paired_difference(run.values(router, SCORE), run.values(other, SCORE), run.noise, comparisons)


def ranking(run: Run) -> list[str]:
    """Learned gates by mean bits per byte over the seeds that all of them have; leaky figures are not in it."""
    values = {name: run.values(name, SCORE) for name in run.learned if run.values(name, SCORE)}
    shared = set.intersection(*(set(found) for found in values.values())) if values else set()
    if not shared:
        return []
    return sorted(values, key=lambda name: sum(values[name][seed] for seed in shared))


def setting(run: Run) -> str:
    """What was trained on what."""
    c, text = run.config, run.config["text"]
    attention = "attention on the LFA-filtered sequence" if c["attention"] == "lfa" else "plain attention"
    return (
        f"{count(len(run.learned), 'learned gate')} and {count(len(run.baselines), 'baseline')}, each in the same "
        f"byte-level transformer ({count(c['num_layers'], 'layer')}, hidden size {c['hidden_size']}, {attention}, "
        f"{c['num_experts']} experts, top {c['top_k']}), trained for {c['steps']:,} steps of "
        f"{c['batch_size']} × {c['sequence_length']} bytes on {text['source']} ({size(text['train_bytes'])}; "
        f"{size(text['validation_bytes'])} held out), {count(c['seeds'], 'seed')} each."
    )


def _headline(run: Run, order: list[str]) -> str:
    if not order:
        return "No gate can be compared yet"
    leader, others = order[0], order[1:]
    score = f"{leader}: {number(run.mean(leader, SCORE))} bits per byte"
    if not others:
        return score
    score = f"{leader} is lowest at {number(run.mean(leader, SCORE))} bits per byte"
    level = _not_clearly_behind(run, leader, others)
    if not level:
        return f"{score}, clearly below every other learned gate"
    if len(level) == len(others):
        return f"{score}, but no other learned gate is clearly behind"
    return f"{score}, not clearly ahead of {listing(level) if len(level) <= MOST_NAMES else f'{len(level)} others'}"


def _not_clearly_behind(run: Run, leader: str, others: list[str]) -> list[str]:
    pairs = math.comb(len(others) + 1, 2)  # which gate leads is seen afterwards: any pair might have come up
    found = {name: difference(run, name, leader, pairs) for name in others}
    return [name for name, d in found.items() if d is None or d.verdict != "worse"]


def _quality(run: Run, order: list[str]) -> list[tuple[str, str]]:
    others = dict.fromkeys(name for name in (run.reference, "random", "dense") if name in run.routers)
    found = {other: _against(run, [name for name in order if name != other], other) for other in others}
    return [(f"Against {other}", text) for other, text in found.items() if text]


def _noise(run: Run) -> list[tuple[str, str]]:
    if run.noise.degrees_of_freedom == 0:
        return []
    n, freedom = len(run.seeds), run.noise.degrees_of_freedom
    return [
        (
            "Noise",
            f"One cell scatters by {number(run.noise.deviation)} bits per byte around what its router and its seed "
            f"explain ({count(freedom, 'degree')} of freedom), so with {count(n, 'seed')} a difference below "
            f"{number(run.noise.margin(n))}, looked at alone, is not told from none.",
        )
    ]


def _against(run: Run, names: list[str], other: str) -> str:
    groups: dict[str, dict[str, Difference]] = {"better": {}, "same": {}, "open": {}, "worse": {}}
    for name in names:
        if d := difference(run, name, other, len(names)):
            groups[d.verdict][name] = d
    phrases = {
        "better": "clearly better",
        "same": f"the same within {SAME_WITHIN:g}",
        "open": "not told apart by these seeds",
        "worse": "clearly worse",
    }
    said = "; ".join(f"{phrases[verdict]}: {_members(found)}" for verdict, found in groups.items() if found)
    return f"{said[0].upper()}{said[1:]}." if said else ""


def _members(found: dict[str, Difference]) -> str:
    """Each with its interval, or how many and their range: the table has the rest."""
    if len(found) <= MOST_NAMES:
        return listing([f"{name} ({interval(d)})" for name, d in found.items()])
    means = [d.mean for d in found.values()]
    return f"{len(found)} gates ({signed(min(means))} to {signed(max(means))})"


def worst_layer(run: Run, router: str, metric: str) -> float:
    """The largest figure over the layers, each a mean over seeds; NaN where none is known."""
    return max((v for v in run.layer_means(router, metric).values() if math.isfinite(v)), default=math.nan)


def _extremes(figures: dict[str, float]) -> tuple[str, str] | None:
    """The routers with the least and the most; None where there are no two different figures."""
    known = {name: figure for name, figure in figures.items() if math.isfinite(figure)}
    if len(set(known.values())) < 2:
        return None
    return min(known, key=known.__getitem__), max(known, key=known.__getitem__)


def _balance(run: Run) -> list[tuple[str, str]]:
    violation = {name: worst_layer(run, name, "max_violation") for name in run.learned}
    said = []
    if ends := _extremes(violation):
        even, uneven = ends
        said.append(
            f"Most even with {even} (MaxVio {number(violation[even], 2)} in its worst layer), least even with {uneven} "
            f"(MaxVio {number(violation[uneven], 2)}: its busiest expert gets {number(violation[uneven] + 1, 1)} times "
            f"the mean)."
        )
    dead = {name: run.layer_means(name, "dead_experts") for name in run.learned}
    starved = [f"{name} ({sum(layers.values()):.3g})" for name, layers in dead.items() if sum(layers.values()) > 0]
    if any(dead.values()):
        said.append(f"Dead experts, summed over layers: {listing(starved)}." if starved else "No expert died.")
    return [("Balance", " ".join(said))] if said else []


def _cost(run: Run) -> list[tuple[str, str]]:
    seconds = {name: run.mean(name, "gate_seconds_per_step") for name in run.learned}
    share = {name: router_share(run, name) for name in run.learned}
    said = []
    if ends := _extremes(seconds):
        least, most = (f"{quantity(seconds[name], 's')} ({name})" for name in ends)
        said.append(f"The forward of all gates takes {least} to {most} a step.")
    if ends := _extremes(share):
        least, most = (f"{percent(share[name])} ({name})" for name in ends)
        said.append(f"Their share of the model's FLOPs is {least} to {most}.")
    return [("Cost", " ".join(said))] if said else []


def router_share(run: Run, router: str) -> float:
    """The gates' part of the model's forward FLOPs."""
    flops = run.routers[router]["flops_per_token"]
    return flops["router"] / flops["total"] if flops["total"] else math.nan


def _warnings(run: Run) -> list[str]:
    found = _failed(run)
    if run.missing:
        total = len(run.routers) * len(run.seeds)
        found.append(f"Unfinished: {run.num_finished} of {total} cells are done. Missing: {cell_list(run.missing)}.")
    if run.unscored:
        found.append(f"Not scored, having no causal form: {cell_list(run.unscored)}.")
    if run.skipped:
        found.append(f"Training skipped steps because a gradient was not finite: {cell_list(run.skipped)}.")
    if run.diverged:
        found.append(f"No finite validation figure, left out of every comparison: {cell_list(run.diverged)}.")
    found += _against_random(run)
    found += _beaten(run)
    if len(run.seeds) < 3:
        found.append(
            f"Only {count(len(run.seeds), 'seed')}: {_few_seeds(run)} Run more before trusting a small difference."
        )
    return found


def _failed(run: Run) -> list[str]:
    return [
        f"Failed: {cell_list({name: seeds})}: {reason}."
        for name in run.routers
        for reason, seeds in run.failures(name).items()
    ]


def _few_seeds(run: Run) -> str:
    if run.noise.degrees_of_freedom == 0:
        return "no interval can be given."
    return (
        f"the intervals rest on {count(run.noise.degrees_of_freedom, 'degree')} of freedom from all routers together, "
        "taken to be equally noisy."
    )


def _against_random(run: Run) -> list[str]:
    """Learning where to send a token must pay, or something is wrong."""
    if "random" not in run.routers:
        return ["random was not in this run, so nothing here shows that routing was learned."]
    differences = {name: difference(run, name, "random", len(run.learned)) for name in run.learned}
    failed = {name: d for name, d in differences.items() if d is not None and d.verdict != "better"}
    if not failed:
        return []
    return ["Not clearly better than random: " + listing([f"{n} ({interval(d)})" for n, d in failed.items()]) + "."]


def _beaten(run: Run) -> list[str]:
    """A baseline that no learned gate reaches would not show in a headline about learned gates."""
    order = ranking(run)
    found = []
    for name in run.baselines:
        d = difference(run, order[0], name, len(order) * len(run.baselines)) if order else None
        if d and d.verdict == "worse":
            found.append(
                f"{name}, a baseline, is clearly better than the best learned gate ({interval(d)} for {order[0]})."
            )
    return found
