"""What a reader needs beside the figures, in plain text for page and Markdown alike."""

from __future__ import annotations

import math
from typing import Any

from gatelab.bench.report.paired import SAME_WITHIN
from gatelab.bench.report.run import LEAKY, SCORE, Run, mean
from gatelab.bench.report.words import listing, number, quantity

INTERVALS = (
    "the difference seed by seed with its 95 % interval. The noise in it is what router and seed leave unexplained in "
    "all cells together, so all routers are taken to be equally noisy. Better and worse mean that it excludes zero, "
    f"same that it lies within ±{SAME_WITHIN:g}, open that these seeds do not tell. Each interval stands alone: where "
    "nothing differs, one in 20 excludes zero all the same."
)
WIDENED = (
    "The headline and the sentences above widen theirs for the number of comparisons they make (Bonferroni), the "
    "headline for every pair of learned gates, since its leader is picked afterwards."
)
QUALITY = f"Bits per byte on held-out text, lower is better, mean over seeds; “minus …” is {INTERVALS} {WIDENED}"
BALANCE = (
    "Over the last quarter of training, mean over seeds, each figure of the layer where it is worst; dead experts are "
    "summed over layers. MaxVio is how far the busiest expert is over the mean load in a batch (0 = even), “summed” "
    "the same of the summed counts, CV the standard deviation over the mean, entropy that of the load over ln E (1 = "
    "even)."
)
COST = (
    "Gate time is the forward of all gates in one training step. FLOPs are the useful matrix products in the forward "
    "of one token and the experts it reaches, in closed form; expert width is what each gate leaves for its experts."
)
GUARANTEES = (
    "What a gate promises whatever its input; training → evaluation where they differ. Causal: a position's routing "
    "depends on no later one. Token-wise: on that token alone. Max load: the bound on any expert's share."
)
FALLBACK = (
    "A gate that looks at later positions cannot generate text as it was trained, and its own figure has seen what it "
    "should predict. It is scored the way it could be used:"
)
PAIR_QUALITY = (
    f"Bits per byte on held-out text, over the seeds that both runs finished, and {INTERVALS} The headline widens them "
    "for the number of routers it counts (Bonferroni)."
)
PAIR_BALANCE = "MaxVio over the last quarter of training, of the layer where it is worst; 0 = even."
PAIR_COST = "Gate time is the forward of all gates in one training step."


def machine(run: Run) -> str:
    m = run.machine
    return (
        f"Measured on {m['processor']} ({m['cores']} cores, device {m['device']}), {m['platform']}, "
        f"Python {m['python']}, torch {m['torch']}."
    )


def fallbacks(run: Run) -> list[tuple[str, str, str]]:
    """Router, how it was scored, and its leaky figure or an empty string."""
    found = []
    for name, router in run.routers.items():
        if router["fallback"]:
            leaky = run.mean(name, LEAKY)
            found.append((name, router["fallback"].rstrip("."), number(leaky) if math.isfinite(leaky) else ""))
    return found


def gate_line(run: Run, name: str) -> str:
    """One gate in a line."""
    score = run.mean(name, SCORE)
    if math.isfinite(score):
        return f"{number(score)} bits per byte"
    return "failed" if run.failures(name) else "no finished cell"


def gate_facts(run: Run, name: str) -> list[tuple[str, str]]:
    """What is known of a gate besides its figures."""
    router, failures = run.routers[name], run.failures(name).items()
    facts = {
        "Source": router["source"],
        "Equation": router["equation"],
        "Experts per token": _experts_per_token(run, name),
        "Expert width": f"{router['intermediate_size']:,}",
        "Parameters": f"{quantity(router['parameters'])}, {quantity(router['router_parameters'])} of them in its gates",
        "Per token": ", ".join(_work(router)),
        "Scored by": router["fallback"] or "",
        "Failed": "; ".join(f"seed {listing([str(s) for s in seeds])}: {why}" for why, seeds in failures),
    }
    return [(term, text) for term, text in facts.items() if text]


def _experts_per_token(run: Run, name: str) -> str:
    router = run.routers[name]
    k, kept = router["experts_per_token"], mean(run.layer_means(name, "experts_per_token").values())
    built = f"{k}" if k is not None else f"varies, {number(router['mean_experts_per_token'], 2)} as built"
    return f"{built}, {number(kept, 2)} kept at the end of training" if math.isfinite(kept) else built


def _work(router: dict[str, Any]) -> list[str]:
    """Totals of the forward; a run of an older version lacks all but the first."""
    parts = {
        "flops_per_token": "FLOPs useful",
        "executed_flops_per_token": "FLOPs executed",
        "elementwise_per_token": "elements elementwise",
        "sorted_per_token": "elements sorted",
    }
    return [f"{quantity(router[field]['total'])} {what}" for field, what in parts.items() if field in router]
