"""Writes published-models.md from `gatelab.zoo`: `python docs/published_models.py`. A test compares the two."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from gatelab.zoo import CLAIMS, MODELS, UNDISCLOSED, Claim, Model
from gatelab.zoo.geometry import BITS
from gatelab.zoo.hardware import CARDS, cards_that_hold
from gatelab.zoo.parts import ATTENTION, EXPERTS, ROUTER, SHARED

CONTEXT = 4096

INTRO = f"""\
# Published models

What a model holds and what a token costs follows from its shape alone. This page computes both for every published
Mixture-of-Experts model we know the shape of, and sets the published figures beside them. `gatelab flops` prints it,
`gatelab flops NAME --context {CONTEXT}` one model in detail, `--json` the same as data; `gatelab.zoo` has it in Python.
The page is written by `python docs/published_models.py`.
"""

TOTALS = """\
## Parameters

Everything stored is counted: both tables, norms, biases, router. A tied table counts once. Multi-token-prediction
modules and vision towers are left out. `?` marks a published figure that was not read at its source.

"Active" has three meanings in use, and few houses say which is theirs: all weights a token can touch; without the input
embedding, which is only looked up; without either table. The last column names the one nearest to the published
figure.
"""

FLOPS = f"""\
## FLOPs per token

Forward, at a context of {CONTEXT}: 2 FLOPs for each active weight in a matrix product (experts, attention projections,
router, output matrix), and the products of attention for a token that sees {CONTEXT} positions (no causal halving;
sliding windows and chunks count only what they show; linear attention does not depend on the context). Norms,
activations, softmax, rotary embedding and sorting are left out. Training costs three times as much.
"""

QUOTED = """\
Published FLOP counts follow two conventions, so each is compared in its own: 2N is 2 × active parameters, forward and
without attention; training is forward and backward with attention.
"""

WEIGHTS = f"""\
## Weights and cards

Bytes of the weights alone, in GB of 10⁹ bytes, and the smallest single card that holds them; cache, activations and
the scales of quantised formats come on top. Cards: {", ".join(f"{size} ({name})" for size, name in CARDS.items())}.
"""

CLAIMS_INTRO = """\
## Headline claims

A claim holds within 2 % of its value, or below it where it is a limit.
"""

TRAPS = """\
## Traps

- **Two parts of Yuan 2.0-M32 are often told as one.** Localized filtering sits in front of the queries and keys of
  self-attention. The attention router attends over experts inside a single token and does not see the filtered
  sequence. `attention` is the published router; `attention` with `lfa=True` is the combined reading, to be measured.
- **Softmax then top-k then renormalise is top-k then softmax** (Mixtral, DBRX, Qwen3). Without renormalising it is not:
  in Grok-1, Qwen1.5-MoE, Qwen2-MoE, OLMoE, DeepSeekMoE, DeepSeek-V2, LongCat and Phi-3.5-MoE the weights do not sum
  to 1.
- **The score that selects is not the score that weighs** in DeepSeek-V3, Kimi K2, GLM-4.5 and LongCat: a bias moves the
  selection only.
- **FLOPs per token, per sequence and per forward pass** are three things, and so are giga and tera.
"""


def page() -> str:
    """The whole page."""
    sections = [
        INTRO,
        TOTALS,
        table(
            ("model", "total", "published", "error", "all", "no input emb.", "neither", "published", "counts"),
            _totals(),
        ),
        "The published figures that geometry contradicts:\n",
        bullets(f"**{model.name}**: {model.disputed}" for model in MODELS if model.disputed),
        FLOPS,
        table(("model", "GFLOP forward", "GFLOP training", "attention", "router", "experts", "shared"), _flops()),
        QUOTED,
        table(("model", "published GFLOP", "convention", "by geometry", "error", "source"), _quoted()),
        WEIGHTS,
        table(("model", *BITS), _weights()),
        CLAIMS_INTRO,
        table(("model", "claim", "claimed", "computed", "verdict", ""), map(_claim, CLAIMS)),
        "## Undisclosed systems\n",
        table(("system", "known", "stands in"), ((s.name, s.known, s.stand_in or "") for s in UNDISCLOSED)),
        "## Routing, notes and sources\n",
        "\n".join(map(_notes, MODELS)),
        TRAPS,
    ]
    return "\n".join(sections)


def _totals() -> Iterable[Sequence[str]]:
    for model in MODELS:
        g = model.geometry
        active = (g.active_params, g.active_params_no_input_embedding, g.active_params_no_embeddings)
        error = f"{model.total.error(g.total_params):+.1%}"
        counts = model.active_convention()
        counts += f", {model.active.error(model.active_conventions()[counts]):+.1%}"
        yield (model.name, _b(g.total_params), str(model.total), error, *map(_b, active), str(model.active), counts)


def _flops() -> Iterable[Sequence[str]]:
    for model in MODELS:
        g, roles = model.geometry, model.geometry.by_role(CONTEXT)
        flops = g.flops_per_token(CONTEXT)
        shares = (roles[role].flops / flops if role in roles else 0 for role in (ATTENTION, ROUTER, EXPERTS, SHARED))
        forward, training = flops / 1e9, g.training_flops_per_token(CONTEXT) / 1e9
        yield (model.name, f"{forward:.2f}", f"{training:.1f}", *(f"{share:.2%}" for share in shares))


def _quoted() -> Iterable[Sequence[str]]:
    for model in MODELS:
        computed = model.published_flops_from_geometry()
        if model.flops and computed:
            published = model.flops.per_token
            error = f"{computed / published - 1:+.1%}"
            quoted, ours = f"{published / 1e9:.2f}", f"{computed / 1e9:.2f}"
            yield (model.name, quoted, model.flops.convention, ours, error, model.flops.source)


def _weights() -> Iterable[Sequence[str]]:
    for model in MODELS:
        sizes = [model.geometry.weight_bytes(precision) for precision in BITS]
        yield (model.name, *(f"{size / 1e9:.1f} → {min(cards_that_hold(size), default='none')}" for size in sizes))


def _claim(claim: Claim) -> Sequence[str]:
    claimed = f"{claim.quantity(claim.claimed)} ({claim.claimed_by})"
    computed = f"{claim.quantity(claim.computed)} ({claim.computed_by})"
    return (claim.model, claim.statement, claimed, computed, "holds" if claim.holds else "does not hold", claim.comment)


def _notes(model: Model) -> str:
    mtp = model.geometry.mtp_params
    module = (f"The multi-token-prediction module, not counted, has {_b(mtp)}.",) if mtp else ()
    return f"**{model.name}**: {' '.join((f'{model.routing}.', *model.notes, *module))} Source: {model.source}.\n"


def _b(count: int) -> str:
    return f"{count / 1e9:.2f}B"


def bullets(lines: Iterable[str]) -> str:
    return "".join(f"- {line}\n" for line in lines)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


if __name__ == "__main__":
    Path(__file__).with_name("published-models.md").write_text(page(), encoding="utf-8")
