"""Gates that do not choose experts by what a token holds, or choose tokens for a block."""

from collections.abc import Sequence

from torch import Tensor

from gatelab.routers.balance import ChosenLoss
from gatelab.routers.checks import check_positive
from gatelab.routers.registry import recipe
from gatelab.routers.router import Router
from gatelab.routers.score import LinearScore, NoScore
from gatelab.routers.select import DepthChoice, Group, hash_table
from gatelab.routers.weight import Constant


@recipe(
    "hash",
    source="Hash Layers, Roller et al. 2021, arXiv 2106.04426, §3",
    equation="S = table[token id];  w = 1/k",
)
def hash_router(
    hidden_size: int,
    num_experts: int,
    top_k: int = 1,
    *,
    vocab_size: int = 8008,
    table: Tensor | None = None,
    frequencies: Sequence[float] | Tensor | None = None,
) -> Router:
    """Experts by token id, from a table that never changes: nothing to learn, nothing to collapse.

    The table is random over `vocab_size` ids (8,008: the paper's Reddit dictionary, unverified), drawn from torch's
    generator when the gate is made; balanced for `frequencies` (V,) if given; or `table` (V, K) itself. Call it with
    `token_ids`. `router_logits` are zeros. Published with k = 1, weight 1.
    Prefer it as the baseline that knows the word and not its context.
    """
    check_positive(vocab_size=vocab_size)
    return Router(
        score=NoScore(hidden_size, num_experts),
        select=hash_table(num_experts, top_k, vocab_size, table=table, frequencies=frequencies),
        weight=Constant(1 / top_k),
    )


@recipe(
    "mixture-of-depths",
    source="Mixture-of-Depths, arXiv 2404.02258, §3 (coefficient unverified)",
    equation="r = w·x;  the block takes the 12.5 % of a sequence with the largest r;  y = r·f(x) + x",
    top_k="fixed",
)
def mixture_of_depths(
    hidden_size: int,
    num_experts: int,
    top_k: int | None = None,
    *,
    share: float = 0.125,
    group: Group = "sequence",
    chosen_coefficient: float = 0.01,
) -> Router:
    """Most tokens skip the block. Made for `num_experts=1`; with more, each expert takes its share by its own r.

    The weight is r itself, not squashed; the layer's residual connection carries x. Training looks at the whole
    sequence; a loss teaches σ(r) to say what was taken, so that evaluation is r > 0, token by token and causal.
    Prefer it to spend less on easy tokens, not to spread tokens over experts.
    """
    if top_k is not None:
        raise ValueError(f"top_k={top_k}: in mixture-of-depths blocks choose tokens; set share= instead")
    return Router(
        score=LinearScore(hidden_size, num_experts),
        activation="none",
        select=DepthChoice(num_experts, share, group),
        balance=[ChosenLoss(chosen_coefficient)],
    )
