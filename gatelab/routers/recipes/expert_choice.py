"""Gates in which experts choose tokens."""

from gatelab.routers.registry import recipe
from gatelab.routers.router import Router
from gatelab.routers.score import LinearScore
from gatelab.routers.select import ExpertChoice, Group


@recipe(
    "expert-choice",
    source="Zhou et al. 2022, arXiv 2202.09368, §3.2",
    equation="p = softmax(W x);  expert i takes the C = ceil(T·k/E) tokens with the largest p_·i;  w = p",
)
def expert_choice(
    hidden_size: int,
    num_experts: int,
    top_k: int = 2,
    *,
    capacity_factor: float | None = None,
    group: Group = "batch",
) -> Router:
    """Every expert takes the same number of tokens; a token gets as many experts as want it, perhaps none.

    The paper's capacity factor is the mean number of experts per token: `top_k` sets it, `capacity_factor` overrides
    it with a number that need not be whole. Weights are not renormalised. Perfectly balanced without a loss, but which
    tokens are taken depends on later ones: not causal, so it cannot generate text as it was trained, and its training
    loss on next-token prediction leaks the future.
    Prefer it for encoders, vision and diffusion.
    """
    return Router(score=LinearScore(hidden_size, num_experts), select=ExpertChoice(capacity_factor or top_k, group))
