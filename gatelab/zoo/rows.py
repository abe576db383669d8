"""One object of plain values per published system: what `gatelab flops --json` prints and the table is made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gatelab.zoo.claims import CLAIMS, Claim
from gatelab.zoo.geometry import BITS
from gatelab.zoo.hardware import cards_that_hold
from gatelab.zoo.models import MODELS, find
from gatelab.zoo.models.undisclosed import UNDISCLOSED
from gatelab.zoo.parts import EXPERTS, ROUTER
from gatelab.zoo.published import Model, Undisclosed

# The figures of a disclosed system; for an undisclosed one each is None.
FIGURES = (
    "total_params",
    "active_params",
    "active_params_no_input_embedding",
    "active_params_no_embeddings",
    "flops_per_token",
    "training_flops_per_token",
    "router_flops_share",
    "experts_flops_share",
    "router_params_share",
    "experts_params_share",
    "published_total_params",
    "published_active_params",
    "published_flops_per_token",
    "total_params_error",
    "active_params_error",
    "active_params_convention",
    "weight_bytes",
    "cards_gb",
)


def flops_rows(names: Iterable[str] | None = None, context: int = 4096) -> list[dict[str, Any]]:
    """One JSON-ready object per published system, in the table's order or that of `names`.

    `flops_per_token` is forward (see `Geometry.flops_per_token`); errors are relative to the published figure, those
    of the active parameters in the convention `active_params_convention` that is nearest to it; `weight_bytes` and
    `cards_gb` (single cards that hold them) are by precision. Undisclosed systems have None everywhere, what is known
    under `known` and a disclosed relative under `stand_in`. Where zero-computation experts exist, every
    figure is of a token that meets none of them; `active_params_mean` and `flops_per_token_mean` are of the mean token.

    Args:
        names: what to look up (`find`); None = all.
        context: positions a token attends to, itself included.

    Raises:
        ValueError: a name that no system or several go by; a context below 1.
    """
    if context < 1:
        raise ValueError(f"context must be at least 1 position (the token itself), got {context}")
    systems = (*MODELS, *UNDISCLOSED) if names is None else tuple(dict.fromkeys(find(name) for name in names))
    return [_row(system, context) for system in systems]


def _row(system: Model | Undisclosed, context: int) -> dict[str, Any]:
    claims = [_claim_row(claim) for claim in CLAIMS if claim.model == system.name]
    if isinstance(system, Undisclosed):
        known = {"disclosed": False, "known": system.known, "stand_in": system.stand_in}
        return {"name": system.name} | dict.fromkeys(FIGURES) | {"context": context} | known | {"claims": claims}
    g = system.geometry
    roles = g.by_role(context)
    flops = g.flops_per_token(context)
    convention = system.active_convention()
    weight_bytes = {precision: g.weight_bytes(precision) for precision in BITS}
    row = {
        "name": system.name,
        "total_params": g.total_params,
        "active_params": g.active_params,
        "active_params_no_input_embedding": g.active_params_no_input_embedding,
        "active_params_no_embeddings": g.active_params_no_embeddings,
        "flops_per_token": flops,
        "training_flops_per_token": g.training_flops_per_token(context),
        "router_flops_share": roles[ROUTER].flops / flops,
        "experts_flops_share": roles[EXPERTS].flops / flops,
        "router_params_share": roles[ROUTER].params / g.total_params,
        "experts_params_share": roles[EXPERTS].params / g.total_params,
        "published_total_params": system.total.value,
        "published_active_params": system.active.value,
        "published_flops_per_token": system.flops.per_token if system.flops else None,
        "total_params_error": system.total.error(g.total_params),
        "active_params_error": system.active.error(system.active_conventions()[convention]),
        "active_params_convention": convention,
        "weight_bytes": weight_bytes,
        "cards_gb": {precision: cards_that_hold(size) for precision, size in weight_bytes.items()},
        "context": context,
        "disclosed": True,
        "unverified": [
            f"published_{which}_params"
            for which, figure in (("total", system.total), ("active", system.active))
            if figure.unverified
        ],
        "disputed": system.disputed or None,
        "notes": list(system.notes),
        "source": system.source,
        "claims": claims,
    }
    idle = g.mean_idle_params
    if idle:
        row |= {"active_params_mean": g.active_params - idle, "flops_per_token_mean": flops - 2 * idle}
    return row


def _claim_row(claim: Claim) -> dict[str, Any]:
    return {
        "statement": claim.statement,
        "claimed": claim.claimed,
        "computed": claim.computed,
        "unit": claim.unit,
        "holds": claim.holds,
    }
