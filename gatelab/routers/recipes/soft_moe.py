"""Soft MoE."""

from gatelab.routers.registry import recipe
from gatelab.routers.router import Router
from gatelab.routers.score import SlotScore
from gatelab.routers.soft_router import SoftRouter


@recipe(
    "soft-moe",
    source="Soft MoE, Puigcerver et al. 2023, arXiv 2308.00951, §2; released code for the normalisation",
    equation="z = scale · x̂ · φ̂;  slot = Σ_t softmax_t(z) x_t;  y_t = Σ_slots softmax_slots(z) · expert(slot)",
    top_k="fixed",
)
def soft_moe(hidden_size: int, num_experts: int, top_k: int | None = None, *, slots_per_expert: int = 1) -> Router:
    """Experts work on mixtures of tokens: nothing is dropped, nothing is discrete, and the load is fixed.

    The cost follows the slots, num_experts · slots_per_expert per sequence, not the tokens; the paper does best with
    one slot per expert and about as many slots as tokens. Each token's output depends on its whole sequence: not
    causal. The call returns a `SoftRouting`: the verbs of a Routing, without ids to force, to save or to replay.
    `router_logits` are (T, E), the logsumexp over an expert's slots. `top_k` means nothing here.
    Prefer it for encoders and vision.
    """
    if top_k is not None:
        raise ValueError(f"top_k={top_k}: soft-moe mixes all tokens into all slots; set slots_per_expert instead")
    return SoftRouter(SlotScore(hidden_size, num_experts, slots_per_expert))
