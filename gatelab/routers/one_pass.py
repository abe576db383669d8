"""Where one kernel does what `Router` describes part by part: top-k, weights, the sort by expert, the Switch loss.

The parts are looked at in every forward, so that nothing has to be told when one of them is replaced or changed: only
their exact types count, and one that is hooked or given another `forward` is none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from gatelab import kernels
from gatelab.kernels.topk_routing import is_one_pass
from gatelab.routers.chain import Chain
from gatelab.routers.context import Context, Selection
from gatelab.routers.in_dtype import in_dtype
from gatelab.routers.routing import Routing
from gatelab.routers.select.group_limited import GroupLimitedTopK
from gatelab.routers.select.topk import TopK
from gatelab.routers.weight import Renormalize, Scale, SigmoidOfChosen, SoftmaxOverChosen

if TYPE_CHECKING:
    from gatelab.routers.router import Router

_WEIGHTS = {Renormalize: "renormalize", SoftmaxOverChosen: "softmax", SigmoidOfChosen: "sigmoid"}


def one_pass(router: Router, ctx: Context) -> Routing | None:
    """The routing of a forward whose scores are there; None where the parts must be asked one by one."""
    if not is_one_pass(ctx.scores) or (weight := recognised(router)) is None:
        return None
    by_TE: Tensor = router.adjusted(ctx)
    if isinstance(router.select, GroupLimitedTopK):
        by_TE = router.select.opened(by_TE)
    found = kernels.topk_routing(
        ctx.scores,
        router.select.k,  # type: ignore[attr-defined]  # both kinds have it
        by_TE=by_TE,
        probabilities_TE=ctx.probabilities,
        token_mask=ctx.mask_T,
        **weight,
    )
    ctx.selection = Selection(found.topk_ids, complete=ctx.mask_T is None)
    ctx.requested, ctx.weights, ctx.balance = found.requested, found.topk_weights, found.balance
    return Routing(
        token_index=found.token_index,
        expert_offsets=found.expert_offsets,
        weights=found.weights,
        choice=found.choice,
        num_tokens=ctx.scores.shape[0],
        token_mask=ctx.mask_T,
        router_logits=ctx.logits,
        scores=ctx.scores,
        probabilities=ctx.probabilities,
        requested=ctx.requested,
        losses=in_dtype(router.balance, ctx.logits.dtype, "losses", ctx),
        statistics={name: value.detach() for name, value in ctx.statistics.items()},
        weights_on_input=router.weights_on_input,
    )


def recognised(router: Router) -> dict[str, Any] | None:
    """How `kernels.topk_routing` weighs as this gate does; None if it selects or weighs in another way."""
    parts: list[Any] = [*router.weight.parts]
    if type(router.select) not in (TopK, GroupLimitedTopK) or type(router.weight) is not Chain:
        return None
    if _has_any_global_hook() or not all(map(_is_bare, (router.select, router.weight, *parts))):
        return None
    words: dict[str, Any] = {"scale": parts.pop().factor} if parts and type(parts[-1]) is Scale else {}
    if not parts:
        return words
    if len(parts) > 1 or type(parts[0]) not in _WEIGHTS:
        return None
    return words | {"weight": _WEIGHTS[type(parts[0])], "eps": getattr(parts[0], "eps", 0.0)}


def _is_bare(part: Any) -> bool:
    """Whether calling this module is calling its class's `forward` and nothing else."""
    own = vars(part) if isinstance(part, nn.Module) else {"forward": part}
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return "forward" not in own and not any(own[name] for name in hooks)
