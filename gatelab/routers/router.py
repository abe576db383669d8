"""`Router`: the pipeline every gate is. score · activation · select · weight · balance, and out comes a `Routing`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from gatelab import kernels
from gatelab.kernels.precision import without_autocast
from gatelab.routers.activation import Activation, probabilities, resolve_activation
from gatelab.routers.balance import Balance
from gatelab.routers.chain import Chain
from gatelab.routers.compatibility import check_compatible
from gatelab.routers.context import Context, Selection, gates_at, promises
from gatelab.routers.guarantees import Guarantees
from gatelab.routers.in_dtype import in_dtype
from gatelab.routers.inputs import check_finite, check_forced, rows, seems_finite, to_context
from gatelab.routers.one_pass import one_pass
from gatelab.routers.routing import Routing, Summary

FORWARDS_BEFORE_WARNING = 100
ZERO_COMPUTATION = ("identity", "zero", "constant")


class Listener(Protocol):
    """What a training forward is told to: a `Tape`, or what `attach` makes."""

    def add(self, router: Router, routing: Routing) -> None: ...


class Router(nn.Module):
    """A gate, made of four choices and what keeps it balanced.

    Args:
        score: `score(ctx) -> (T, E)` raw logits; a function or a module.
        select: `select(scores (T, E), ctx) -> Selection`, on the scores after every `adjust`.
        activation: name or callable (T, E) -> (T, E), from logits to scores.
        weight: one `weight(gates (T, J), valid (T, J), ctx) -> (T, J)` or several, applied in order to the unadjusted
            scores of everything chosen; none = those scores.
        balance: parts with the hooks of `Balance`.
        num_experts: E; default `score.num_experts`.
        hidden_size: D, to check the input against; default `score.hidden_size` if it has one.
        select_on: `scores`, or `logits` where the activation saturates.
        gate_dtype: the dtype scoring runs in, whatever the model's; bfloat16 reproduces models whose gate runs in it.
        weights_on_input: the weight multiplies what goes into the expert (Llama 4).
        zero_computation: the kinds of the last Z of the E experts (`identity`, `zero`, `constant`), which the layer
            needs to know: `Experts(E - Z, ..., zero_computation=router.zero_computation)`.

    Raises:
        ValueError: E is unknown, or a name is; or two parts do not go together, with the reason.
    """

    def __init__(
        self,
        *,
        score: Callable[[Context], Tensor],
        select: Callable[[Tensor, Context], Selection],
        activation: str | Activation = "softmax",
        weight: Callable[..., Tensor] | Iterable[Callable[..., Tensor]] = (),
        balance: Iterable[Balance] = (),
        num_experts: int | None = None,
        hidden_size: int | None = None,
        select_on: Literal["scores", "logits"] = "scores",
        gate_dtype: torch.dtype = torch.float32,
        weights_on_input: bool = False,
        zero_computation: Iterable[str] = (),
    ) -> None:
        super().__init__()
        num_experts = getattr(score, "num_experts", None) if num_experts is None else num_experts
        if num_experts is None or num_experts < 1:
            raise ValueError(f"num_experts={num_experts}: pass num_experts= (at least 1), or a score that has it")
        k = getattr(select, "k", None)
        if k is not None and not 1 <= k <= num_experts:
            raise ValueError(f"top_k={k} does not fit num_experts={num_experts}; choose 1 to {num_experts}")
        if select_on not in ("scores", "logits"):
            raise ValueError(f"select_on={select_on!r} is unknown; choose 'scores' or 'logits'")
        self.num_experts: int = num_experts
        self.hidden_size: int | None = getattr(score, "hidden_size", None) if hidden_size is None else hidden_size
        self.score, self.select = score, select
        self.activation = resolve_activation(activation)
        self.weight = Chain([weight] if callable(weight) else weight)
        # A ModuleList, typed by what it holds.
        self.balance = cast("Sequence[Balance]", nn.ModuleList(balance))
        self.select_on, self.gate_dtype, self.weights_on_input = select_on, gate_dtype, weights_on_input
        self.zero_computation: tuple[str, ...] = tuple(zero_computation)
        if unknown := set(self.zero_computation) - set(ZERO_COMPUTATION):
            raise ValueError(f"zero_computation holds {min(unknown)!r}; choose among {', '.join(ZERO_COMPUTATION)}")
        self.listeners: tuple[Listener, ...] = ()
        self._forwards_since_update = 0
        check_compatible(self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "balance" and not isinstance(value, _Balances):
            value = _Balances(value)
        super().__setattr__(name, value)

    @property
    def parts(self) -> list[Any]:
        """The parts in the order they act."""
        return [self.score, self.activation, self.select, *self.weight.parts, *self.balance]

    @property
    def guarantees(self) -> Guarantees:
        """What this gate promises in its current mode, training or evaluation."""
        return Guarantees.joint(self.parts, self.training)

    @property
    def num_parameters(self) -> int:
        """Learned numbers; state is not counted."""
        return sum(p.numel() for p in self.parameters())

    def flops(self, T: int) -> int:
        """Matrix-product FLOPs of one forward over T tokens (2 per multiply-add), in closed form."""
        total = sum(part.flops(T) for part in self.parts if hasattr(part, "flops"))
        if self.training and any(getattr(part, "rescores", False) for part in self.balance):
            total += getattr(self.score, "flops", lambda T: 0)(T)
        return total

    def forward(
        self,
        hidden_states: Tensor,
        *,
        token_mask: Tensor | None = None,
        token_ids: Tensor | None = None,
        labels: Tensor | None = None,
        previous: Routing | None = None,
        forced: Tensor | None = None,
        cache: dict[Any, Any] | None = None,
    ) -> Routing:
        """Route.

        Args:
            hidden_states: (B, S, D), or (T, D): one sequence of T.
            token_mask: (B, S) or (T,), cast to bool; True = a real token. Others go nowhere and influence nothing.
            token_ids, labels: (B, S) or (T,), for gates that read them.
            previous: the Routing of the layer before, for gates that read it.
            forced: (B, S, K) or (T, K) expert ids to route to instead of selecting (-1 = none); still weighed.
            cache: a dict, one per layer, that carries a gate over from call to call when decoding.

        Returns:
            The Routing of T = B·S tokens.

        Raises:
            ValueError: a shape does not fit, or the hidden states hold NaN or inf (looked at on the CPU in eager
                mode; on a GPU or under torch.compile, where looking would stall, they propagate).
        """
        ctx = to_context(self, hidden_states, token_mask, token_ids, labels, previous, cache)
        if not promises(self.score, "shows_nonfinite"):
            check_finite(ctx.hidden, "hidden_states")
        with without_autocast(hidden_states.device.type):
            routing = self._route(ctx, None if forced is None else rows(forced, ctx, "forced"))
        if self.training:
            self._record(routing)
        return routing

    def _route(self, ctx: Context, forced: Tensor | None) -> Routing:
        ctx.score = self._score
        ctx.logits = self._score(ctx)
        dtype = ctx.logits.dtype
        ctx.noisy_logits = self._balanced("perturb", ctx.logits, ctx)
        ctx.scores = self.activation(ctx.noisy_logits)
        ctx.probabilities = probabilities(self.activation, ctx.noisy_logits, ctx.scores)
        if forced is None and (routing := one_pass(self, ctx)) is not None:
            return routing
        ctx.selection = selection = self._select(ctx) if forced is None else self._forced(forced, ctx)
        if ctx.mask_T is not None:
            selection = replace(selection, ids=torch.where(ctx.mask_T[:, None], selection.ids, -1), complete=False)
            ctx.selection = selection
        ids = selection.ids
        order, expert_offsets = kernels.group_by_expert(ids, self.num_experts)
        ctx.requested = expert_offsets.diff()
        valid = ids >= 0
        gates = selection.gates
        if selection.complete:
            gates = ctx.scores.gather(1, ids) if gates is None else gates
            ctx.weights = in_dtype(self.weight, dtype, gates, valid, ctx)
        else:
            gates = ctx.scores.gather(1, ids.clamp(min=0)) if gates is None else gates
            gates = torch.where(valid, gates, 0)
            ctx.weights = torch.where(valid, in_dtype(self.weight, dtype, gates, valid, ctx), 0)
        losses = in_dtype(self.balance, dtype, "losses", ctx)
        weights = ctx.weights
        if selection.keep is not None:
            order, expert_offsets = kernels.group_by_expert(torch.where(selection.keep, ids, -1), self.num_experts)
            weights = torch.where(selection.keep, weights, 0)
        return Routing.from_groups(
            order if selection.max_assignments is None else order[: selection.max_assignments],
            expert_offsets,
            weights,
            token_mask=ctx.mask_T,
            router_logits=ctx.logits,
            scores=ctx.scores,
            probabilities=ctx.probabilities,
            requested=ctx.requested,
            losses=losses,
            statistics={name: value.detach() for name, value in ctx.statistics.items()},
            weights_on_input=self.weights_on_input,
        )

    def _score(self, ctx: Context) -> Tensor:
        logits_TE = in_dtype(self.score, self.gate_dtype, ctx)
        # Fewer numbers to look at than the hidden states have.
        if promises(self.score, "shows_nonfinite") and not seems_finite(logits_TE):
            check_finite(ctx.hidden, "hidden_states")
        return logits_TE.to(torch.promote_types(self.gate_dtype, torch.float32))

    def _select(self, ctx: Context) -> Selection:
        dtype = ctx.logits.dtype
        return in_dtype(self.select, dtype, self.adjusted(ctx), ctx)

    def _forced(self, ids_TJ: Tensor, ctx: Context) -> Selection:
        if ctx.mask_T is not None:
            ids_TJ = torch.where(ctx.mask_T[:, None], ids_TJ, -1)
        check_forced(ids_TJ, self.num_experts)
        return Selection(ids_TJ, gates=gates_at(self.select, ids_TJ, self._select_from(ctx), ctx))

    def adjusted(self, ctx: Context) -> Tensor:
        """(T, E), what `select` sees."""
        return self._balanced("adjust", self._select_from(ctx), ctx)

    def _balanced(self, hook: str, values_TE: Tensor, ctx: Context) -> Tensor:
        """What the balance parts make of logits (`perturb`) or scores (`adjust`); most do neither."""
        if not cast("_Balances", self.balance).have(hook):
            return values_TE
        return in_dtype(self.balance, ctx.logits.dtype, hook, values_TE, ctx)

    def _select_from(self, ctx: Context) -> Tensor:
        return ctx.scores if self.select_on == "scores" else ctx.noisy_logits

    def update(self, summaries: Sequence[Summary]) -> None:
        """Move the state of every balance part: once per optimizer step, with the summaries of its micro-batches."""
        self._forwards_since_update = 0
        if summaries:
            with torch.no_grad():
                for part in self.balance:
                    part.update(summaries)

    def _record(self, routing: Routing) -> None:
        if torch.compiler.is_compiling():
            for listener in self.listeners:
                listener.add(self, routing)
            return
        if torch._C._current_graph_task_id() != -1:  # a recomputation inside backward: seen already
            return
        for listener in self.listeners:
            listener.add(self, routing)
        self._forwards_since_update += 1
        if self._forwards_since_update == FORWARDS_BEFORE_WARNING and self.guarantees.stateful:
            warnings.warn(
                f"a stateful gate has trained {FORWARDS_BEFORE_WARNING} forwards without an update: call "
                "gatelab.update_routers(tape) after each optimizer step",
                stacklevel=3,
            )

    def __getstate__(self) -> dict[str, Any]:
        # Who listens to a gate does not listen to its copy.
        return {**self.__dict__, "listeners": ()}

    def extra_repr(self) -> str:
        name = getattr(self.activation, "__name__", repr(self.activation))
        return f"num_experts={self.num_experts}, activation={name}, select_on={self.select_on!r}"


class _Balances(nn.ModuleList):
    """The balance parts, one hook of all of them at a time; through `forward`, so that it can be lent parameters."""

    def forward(self, hook: str, *args: Any) -> Any:
        return getattr(self, hook)(*args)

    def have(self, hook: str) -> bool:
        """Whether any part does something there."""
        nothing = getattr(Balance, hook)
        return any(getattr(getattr(part, hook), "__func__", None) is not nothing for part in self)

    def perturb(self, logits_TE: Tensor, ctx: Context) -> Tensor:
        ctx.noisy_logits = logits_TE
        for part in cast("Iterable[Balance]", self):
            ctx.noisy_logits = part.perturb(ctx.noisy_logits, ctx)
        return ctx.noisy_logits

    def adjust(self, scores_TE: Tensor, ctx: Context) -> Tensor:
        for part in cast("Iterable[Balance]", self):
            scores_TE = part.adjust(scores_TE, ctx)
        return scores_TE

    def losses(self, ctx: Context) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for part in cast("Iterable[Balance]", self):
            for name, value in part.losses(ctx).items():
                found[name] = found[name] + value if name in found else value
        return found
