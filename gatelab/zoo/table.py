"""What `gatelab flops` prints: the rows as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gatelab.zoo.claims import CLAIMS, Claim
from gatelab.zoo.geometry import BITS
from gatelab.zoo.models import find
from gatelab.zoo.published import Model, Undisclosed
from gatelab.zoo.rows import flops_rows

TABLE_HEAD = (
    *("model", "total", "published", "error", "active", "published", "error", "which counts"),
    *("GFLOP/token", "router", "experts"),
    *(f"{precision} GB (card)" for precision in BITS),
)


def table_cells(row: dict[str, Any]) -> tuple[str, ...]:
    """The cells of one disclosed row under `TABLE_HEAD`."""
    model = find(row["name"])
    assert isinstance(model, Model)
    active = model.active_conventions()[row["active_params_convention"]]
    return (
        row["name"],
        billions(row["total_params"]),
        str(model.total),
        f"{row['total_params_error']:+.1%}",
        billions(active),
        str(model.active),
        f"{row['active_params_error']:+.1%}",
        row["active_params_convention"],
        f"{row['flops_per_token'] / 1e9:.2f}",
        f"{row['router_flops_share']:.2%}",
        f"{row['experts_flops_share']:.1%}",
        *(_weights(row, precision) for precision in BITS),
    )


def render_table(rows: Sequence[dict[str, Any]]) -> str:
    """`rows` of `flops_rows` as text: the table, what it cannot say, the undisclosed systems, the headline claims."""
    disclosed = [row for row in rows if row["disclosed"]]
    parts = []
    if disclosed:
        parts.append(align([TABLE_HEAD, *(table_cells(row) for row in disclosed)]))
        parts.append(legend(disclosed[0]["context"]))
    parts += [f"{row['name']}: {row['disputed']}" for row in disclosed if row["disputed"]]
    undisclosed = [row for row in rows if not row["disclosed"]]
    if undisclosed:
        parts.append("Undisclosed:\n" + "\n".join(f"  {row['name']}: {known(row)}" for row in undisclosed))
    claims = claims_of(rows)
    if claims:
        parts.append("Headline claims:\n" + "\n".join(f"  {claim_line(claim)}" for claim in claims))
    return "\n\n".join(parts)


def render_model(name: str, context: int = 4096) -> str:
    """One published system in detail, as text.

    Raises:
        ValueError: as `find` and `flops_rows` do.
    """
    (row,) = flops_rows([name], context)
    system = find(name)
    claims = [f"  {claim_line(claim)}" for claim in claims_of([row])]
    claim_block = ["\nHeadline claims:", *claims] if claims else []
    if isinstance(system, Undisclosed):
        return "\n".join([f"{system.name} (undisclosed)", f"  {known(row)}", *claim_block])
    g, flops = system.geometry, row["flops_per_token"]
    roles = [("part", "parameters", "active", "FLOPs per token", "share of FLOPs")]
    roles += [
        (tally.role, f"{tally.params:,}", f"{tally.active_params:,}", f"{tally.flops:,}", f"{tally.flops / flops:.2%}")
        for tally in g.by_role(context).values()
    ]
    roles.append(("together", f"{g.total_params:,}", f"{g.active_params:,}", f"{flops:,}", "100%"))
    lines = [
        f"{system.name}: {g.num_layers} layers, D = {g.hidden_size}, vocabulary {g.vocab_size:,}",
        f"experts: {_experts(system)}",
        f"routing: {system.routing} (recipe {system.moe.router})",
        "",
        align(roles),
        "",
        f"total          {billions(g.total_params)}, published {system.total}, {row['total_params_error']:+.2%}",
    ]
    for convention, active in system.active_conventions().items():
        fits = "  ← nearest" if convention == row["active_params_convention"] else ""
        error = f"published {system.active}, {system.active.error(active):+.2%}"
        lines.append(f"active         {billions(active)} ({convention}), {error}{fits}")
    if g.mean_idle_params:
        mean = row["flops_per_token_mean"] / 1e9
        lines.append(f"mean token     {mean:.3f} GFLOP forward; all other figures are of a token without idle experts")
    forward, training = f"{flops / 1e9:.3f} GFLOP forward", f"{row['training_flops_per_token'] / 1e9:.3f} in training"
    lines.append(f"per token      {forward}, {training}, at {context} positions")
    published = system.published_flops_from_geometry()
    if system.flops and published:
        convention = {"2N": "2 × active parameters, forward", "training": f"training, {system.flops.context} positions"}
        lines.append(
            f"published      {system.flops.per_token / 1e9:.2f} GFLOP ({convention[system.flops.convention]}), "
            f"by geometry {published / 1e9:.2f}, {published / system.flops.per_token - 1:+.2%}; {system.flops.source}"
        )
    lines += [f"{precision:<15}{_weights_in_words(row, precision)}" for precision in BITS]
    if g.mtp:
        lines.append(f"not counted    {billions(g.mtp_params)} in the multi-token-prediction module")
    if system.disputed:
        lines += ["", f"published figure wrong: {system.disputed}"]
    lines += ["", *(f"note: {note}" for note in system.notes), f"source: {system.source}", *claim_block]
    return "\n".join(lines)


def _experts(system: Model) -> str:
    moe = system.moe
    words = f"E = {moe.num_experts}, K = {moe.top_k}, I = {moe.intermediate_size}, {moe.activation}"
    if moe.shared_experts:
        words += f"; {moe.shared_experts} shared, {moe.shared_intermediate_size} wide together"
    return words + (f"; {moe.zero_experts} identity experts" if moe.zero_experts else "")


def legend(context: int) -> str:
    """What the columns mean, in words."""
    return (
        f"GFLOP/token: forward, 2 × active weights in matrix products plus attention at {context} positions; training "
        'costs three times this. "which counts": the convention for active parameters nearest to the published figure. '
        "?: unverified. GB of weights alone, and the smallest single card that holds them (24 to 192 GB)."
    )


def known(row: dict[str, Any]) -> str:
    """What a row of an undisclosed system says."""
    return row["known"] + (f"; look at {row['stand_in']}" if row["stand_in"] else "")


def claims_of(rows: Sequence[dict[str, Any]]) -> list[Claim]:
    names = {row["name"] for row in rows}
    return [claim for claim in CLAIMS if claim.model in names]


def claim_line(claim: Claim) -> str:
    verdict = "holds" if claim.holds else "does not hold"
    sides = f"claimed {claim.quantity(claim.claimed)} ({claim.claimed_by}), "
    sides += f"computed {claim.quantity(claim.computed)} ({claim.computed_by})"
    return " ".join(filter(None, (f"{claim.model}, {claim.statement}: {verdict}; {sides}.", claim.comment)))


def billions(count: int) -> str:
    return f"{count / 1e9:.2f}B"


def _weights(row: dict[str, Any], precision: str) -> str:
    cards = row["cards_gb"][precision]
    return f"{row['weight_bytes'][precision] / 1e9:.1f} ({cards[0] if cards else '-'})"


def _weights_in_words(row: dict[str, Any], precision: str) -> str:
    cards = ", ".join(map(str, row["cards_gb"][precision]))
    return f"{row['weight_bytes'][precision] / 1e9:.1f} GB of weights, " + (
        f"on one card of {cards} GB" if cards else "on no single card"
    )


def align(lines: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first and any with words to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = [index == 0 or lines[0][index] == "which counts" for index in range(len(widths))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in lines
    )
