"""The contract every gate keeps, as checks that run on any `Router`: ours, and yours.

    from gatelab.testing import check_router
    check_router(lambda: MyGate(hidden_size=16, num_experts=5))

Which checks bite is decided by what the router's `guarantees` promise. T tokens, D hidden size, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from gatelab.layers.experts import Experts
from gatelab.layers.moe import MoE
from gatelab.routers.router import Router
from gatelab.routers.routing import Routing
from gatelab.routers.soft_routing import SoftRouting
from gatelab.routers.tape import record, update_routers

B, S = 3, 11
SEED = 20


@dataclass(frozen=True)
class Batch:
    """What a router is called with: hidden (B, S, D), mask, token ids and labels (B, S)."""

    hidden: Tensor
    token_mask: Tensor | None
    token_ids: Tensor
    labels: Tensor

    def __getitem__(self, key: Any) -> Batch:
        mask = None if self.token_mask is None else self.token_mask[key]
        return Batch(self.hidden[key], mask, self.token_ids[key], self.labels[key])

    def with_hidden(self, hidden: Tensor) -> Batch:
        return Batch(hidden, self.token_mask, self.token_ids, self.labels)


def make_batch(router: Router, hidden_size: int, masked: bool = False, dtype: torch.dtype = torch.float32) -> Batch:
    """A reproducible random batch; `masked` has padding on the left, on the right, and a row of nothing else."""
    generator = torch.Generator().manual_seed(SEED)
    mask = torch.ones(B, S, dtype=torch.bool)
    mask[0, :3], mask[1, -4:], mask[2] = False, False, False
    return Batch(
        torch.randn(B, S, hidden_size, generator=generator).to(dtype),
        mask if masked else None,
        torch.randint(64, (B, S), generator=generator),
        torch.randint(router.num_experts, (B, S), generator=generator),
    )


def route(router: Router | MoE, batch: Batch, seed: int = SEED, **kwargs: Any) -> Any:
    """Call a router (or a layer) on a batch after seeding torch's generator."""
    torch.manual_seed(seed)
    return router(batch.hidden, token_mask=batch.token_mask, token_ids=batch.token_ids, labels=batch.labels, **kwargs)


def check_router(make: Callable[[], Router]) -> None:
    """Run every check on fresh routers from `make`. Raises AssertionError that says which promise is broken."""
    for check in CHECKS:
        check(make)


def _made(make: Callable[[], Router]) -> Router:
    torch.manual_seed(SEED)
    return make()


def _modes(make: Callable[[], Router]) -> Iterator[tuple[Router, int]]:
    for training in (True, False):
        router = _made(make).train(training)
        yield router, _width(router)


def _width(router: Router) -> int:
    return router.hidden_size or 16


def _is_random(router: Router, batch: Batch) -> bool:
    # Two seeds may agree by chance; the generator tells for sure whether anything was drawn.
    torch.manual_seed(SEED)
    before = torch.get_rng_state()
    route(router, batch)
    return not torch.equal(before, torch.get_rng_state())


def _same(a: Tensor, b: Tensor, what: str) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, equal_nan=True, msg=lambda m: f"{what}: {m}")


def check_conservation(make: Callable[[], Router]) -> None:
    """Every assignment is counted once, in every view; K, drops and load are as promised."""
    for router, D in _modes(make):
        for masked in (False, True):
            batch, promise = make_batch(router, D, masked), router.guarantees
            r: Routing = route(router, batch)
            N = int(r.expert_offsets[-1])
            real = torch.ones(B * S, dtype=torch.bool) if batch.token_mask is None else batch.token_mask.flatten()
            assert int(r.tokens_per_expert.sum()) == int(r.live.sum()) == N
            assert isinstance(r, SoftRouting) or int(r.experts_per_token.sum()) == N
            assert bool((r.requested >= r.tokens_per_expert).all()), "more kept than requested"
            assert not r.experts_per_token[~real].any(), "a masked token is routed"
            if promise.experts_per_token is not None:
                wanted = promise.experts_per_token * int(real.sum())
                assert int(r.requested.sum()) == wanted, f"{int(r.requested.sum())} requested, K·T is {wanted}"
            if promise.dropless:
                assert not r.dropped.any(), "promised dropless"
                assert bool((r.experts_per_token[real] >= 1).all()), "promised dropless, but a token has no expert"
            weights, ids = r.topk()
            _same(r.to_dense().sum(1), weights.sum(1), "topk and to_dense")
            assert torch.equal((ids >= 0).sum(1), r.experts_per_token)
            _same(torch.from_numpy(r.to_scipy().toarray()), r.to_dense().detach(), "to_scipy and to_dense")


def check_max_load(make: Callable[[], Router]) -> None:
    """No expert of a single row gets more than ceil(max_load · K·T/E)."""
    for router, D in _modes(make):
        bound = router.guarantees.max_load
        for length in (1, 2, S) if bound is not None else ():
            r = route(router, make_batch(router, D)[:1, :length])
            limit = math.ceil((bound or 0.0) * int(r.requested.sum()) / router.num_experts - 1e-9)
            most = int(r.tokens_per_expert.max())
            assert most <= limit, f"an expert has {most} of {length} tokens, promised at most {limit}"


def check_layout(make: Callable[[], Router]) -> None:
    """Offsets ascend, tokens ascend inside an expert, no pair stands twice, the tail is harmless."""
    for router, D in _modes(make):
        r = route(router, make_batch(router, D, masked=True))
        assert int(r.expert_offsets[0]) == 0
        assert bool((r.expert_offsets.diff() >= 0).all())
        if isinstance(r, SoftRouting):
            _check_mixtures(r)
            continue
        assert int(r.expert_offsets[-1]) <= r.token_index.shape[0]
        assert bool(((r.token_index >= 0) & (r.token_index < r.num_tokens)).all()), "tail tokens must be valid too"
        assert not r.weights[~r.live].any(), "the tail weighs something"
        key = (r.expert_index * r.num_tokens + r.token_index)[r.live]
        assert bool((key.diff() > 0).all()), "a (token, expert) pair twice, or tokens out of order inside an expert"
        assert r.token_index.dtype == r.expert_offsets.dtype == r.choice.dtype == r.requested.dtype == torch.int64
        for name in ("weights", "router_logits", "scores", "probabilities"):
            assert getattr(r, name).dtype == torch.float32, f"{name} is {getattr(r, name).dtype}"


def _check_mixtures(r: SoftRouting) -> None:
    real_BS = torch.ones(B * S) if r.token_mask is None else r.token_mask.float()
    real_BS = real_BS.view(B, S)
    slots = r.dispatch_weights.flatten(2)
    _same(slots.sum(1), real_BS.amax(1)[:, None].expand(B, slots.shape[2]), "a slot is a mixture of real tokens")
    _same(r.combine_weights.sum((2, 3)), real_BS, "a real token is a mixture of slots")
    assert not slots[real_BS == 0].any(), "a masked token is dispatched"


def check_gradients(make: Callable[[], Router]) -> None:
    """Finite gradients reach the hidden states and a learning gate's parameters; nothing flows from tails."""
    router = _made(make)
    batch = make_batch(router, _width(router), masked=True)
    hidden = batch.hidden.clone().requires_grad_()
    r: Routing = route(router, batch.with_hidden(hidden))
    rows = r.dispatch(hidden.flatten(0, 1))
    rows = torch.where(r.live[:, None], rows, torch.nan)
    (r.combine(rows).square().sum() + r.aux_loss).backward()
    assert hidden.grad is not None
    assert bool(hidden.grad.isfinite().all()), "NaN reaches the hidden states"
    learned = [p.grad for p in router.parameters()]
    assert all(g is None or bool(g.isfinite().all()) for g in learned), "NaN reaches a parameter"
    if learned:
        assert any(g is not None and bool(g.any()) for g in learned), "the gate has parameters and no gradient"


def check_mask(make: Callable[[], Router]) -> None:
    """What a masked token holds, NaN included, changes nothing anywhere; nor does its presence beside real ones."""
    for router, D in _modes(make):
        batch = make_batch(router, D, masked=True)
        assert batch.token_mask is not None
        r: Routing = route(router, batch)
        noise = torch.full_like(batch.hidden, torch.nan)
        poisoned: Routing = route(
            router, batch.with_hidden(torch.where(batch.token_mask[..., None], batch.hidden, noise))
        )
        for field in fields(r):
            value = getattr(r, field.name)
            if isinstance(value, Tensor):
                assert torch.equal(value, getattr(poisoned, field.name)), f"a masked token changes {field.name}"
        for name, loss in r.losses.items():
            assert torch.equal(loss, poisoned.losses[name]), f"a masked token changes the loss {name}"
        if _is_random(router, batch):
            continue
        padded = route(router, batch[:1]).to_dense()[3:]
        alone = Batch(batch.hidden[:1, 3:], None, batch.token_ids[:1, 3:], batch.labels[:1, 3:])
        _same(padded, route(router, alone).to_dense(), "padding on the left")
        padded, losses = route(router, batch[1:2]).to_dense()[:-4], route(router, batch[1:2]).losses
        alone = Batch(batch.hidden[1:2, :-4], None, batch.token_ids[1:2, :-4], batch.labels[1:2, :-4])
        _same(padded, route(router, alone).to_dense(), "padding on the right")
        for name, loss in route(router, alone).losses.items():
            _same(losses[name], loss, f"padding in the loss {name}")


def check_token_wise(make: Callable[[], Router]) -> None:
    """Permuting tokens permutes the routing, and what the others hold does not matter."""
    for router, D in _modes(make):
        batch = make_batch(router, D)
        if not router.guarantees.token_wise or _is_random(router, batch):
            continue
        order = torch.randperm(S, generator=torch.Generator().manual_seed(SEED))
        whole = route(router, batch).to_dense().view(B, S, -1)
        permuted = route(router, batch[:, order]).to_dense().view(B, S, -1)
        _same(whole[:, order], permuted, "token_wise is promised, but order matters")
        others = torch.arange(S) % 3 > 0
        changed = batch.with_hidden(torch.where(others[:, None], 2 - batch.hidden, batch.hidden))
        again = route(router, changed).to_dense().view(B, S, -1)
        _same(whole[:, ~others], again[:, ~others], "token_wise is promised, but other tokens matter")


def check_causal(make: Callable[[], Router]) -> None:
    """No later token and no other row matters, and a prefix routes as it does inside the whole."""
    for router, D in _modes(make):
        if not router.guarantees.causal:
            continue
        batch, cut = make_batch(router, D), S // 2
        whole = route(router, batch).to_dense().view(B, S, -1)
        later = batch.hidden.clone()
        later[:, cut:] = -later[:, cut:].flip(1)
        changed = route(router, batch.with_hidden(later)).to_dense().view(B, S, -1)
        _same(whole[:, :cut], changed[:, :cut], "a later token changes an earlier one's routing")
        for kept in (slice(1), slice(1, None)):
            other = -batch.hidden
            other[kept] = batch.hidden[kept]
            changed = route(router, batch.with_hidden(other)).to_dense().view(B, S, -1)
            _same(whole[kept], changed[kept], "another row changes this one's routing")
        if not (router.training and _is_random(router, batch)):
            prefix = route(router, batch[:, :cut]).to_dense().view(B, cut, -1)
            _same(whole[:, :cut], prefix, "a prefix alone routes differently")


def check_cache(make: Callable[[], Router]) -> None:
    """Decoding token by token with a cache gives what the whole sequence gives."""
    router = _made(make).eval()
    batch = make_batch(router, _width(router))
    if not router.guarantees.causal or _is_random(router, batch):
        return
    whole = route(router, batch).to_dense().view(B, S, -1)
    cache: dict[str, Any] = {}
    steps = [
        route(router, batch[:, a:b], cache=cache).to_dense() for a, b in ((0, 3), *((s, s + 1) for s in range(3, S)))
    ]
    pieces = torch.cat([step.view(B, -1, whole.shape[2]) for step in steps], dim=1)
    _same(whole, pieces, "decoding with a cache")


def check_state(make: Callable[[], Router]) -> None:
    """Forwards move no state, `update_routers` alone does; `state_dict` carries everything; the same seed repeats."""
    router = _made(make)
    D = _width(router)
    batch = make_batch(router, D)
    for training in (True, False):
        router.train(training)
        before = {name: value.clone() for name, value in router.state_dict().items()}
        first, second = route(router, batch), route(router, batch)
        assert torch.equal(first.to_dense(), second.to_dense()), "the same seed routes differently"
        for name, value in router.state_dict().items():
            assert torch.equal(value, before[name]), f"a forward moved {name}"
    router.train()
    for _ in range(3):
        with record(router) as tape:
            route(router, batch)
        update_routers(tape)
    moved = any(not torch.equal(value, before[name]) for name, value in router.state_dict().items())
    assert moved <= router.guarantees.stateful, "state moves, but guarantees.stateful is False"
    torch.manual_seed(SEED + 1)
    other = make()
    other.load_state_dict(router.state_dict())
    for training in (True, False):
        a, b = route(router.train(training), batch), route(other.train(training), batch)
        assert torch.equal(a.to_dense(), b.to_dense()), "state_dict does not carry everything"


def check_low_precision(make: Callable[[], Router]) -> None:
    """After `.to(bfloat16)` scoring still runs in float32, and state stays float32."""
    for router, D in _modes(make):
        batch = make_batch(router, D, dtype=torch.bfloat16)
        state = {name: value.dtype for name, value in router.named_buffers()}
        router.to(torch.bfloat16)
        assert {name: value.dtype for name, value in router.named_buffers()} == state, "state changed its dtype"
        low = route(router, batch)
        wide = _made(make).train(router.training)
        wide.load_state_dict(router.state_dict())
        expected = route(wide, batch.with_hidden(batch.hidden.float()))
        assert low.router_logits.dtype == torch.float32
        assert torch.equal(low.router_logits, expected.router_logits), "scoring ran in another precision than float32"
        assert torch.equal(low.to_dense(), expected.to_dense())


def check_extremes(make: Callable[[], Router]) -> None:
    """Hidden states of size up to 1e4, zeros, and bfloat16 give no NaN or inf, forward or backward."""
    for scale in (1e4, 0.0):
        for dtype in (torch.float32, torch.bfloat16):
            router = _made(make).to(dtype)
            batch = make_batch(router, _width(router), masked=True, dtype=dtype)
            hidden = (scale * batch.hidden).requires_grad_()
            r: Routing = route(router, batch.with_hidden(hidden))
            assert bool(r.to_dense().isfinite().all()), f"weights are not finite at hidden states of size {scale}"
            assert bool(r.probabilities.isfinite().all()), f"probabilities are not finite at size {scale}"
            loss = r.combine(r.dispatch(hidden.flatten(0, 1))).float().sum() + r.aux_loss
            assert bool(r.aux_loss.isfinite()), f"the loss is not finite at size {scale}"
            if not loss.requires_grad:
                continue
            loss.backward()
            grads = [hidden.grad, *(p.grad for p in router.parameters())]
            assert all(g is None or bool(g.isfinite().all()) for g in grads), (
                f"gradients are not finite at size {scale}"
            )
            for _ in range(3):
                with record(router) as tape:
                    route(router, batch.with_hidden(hidden.detach()))
                update_routers(tape)
            moved = route(router, batch.with_hidden(hidden.detach()))
            assert bool(moved.to_dense().isfinite().all()), f"state learned at size {scale} breaks the next forward"


def check_shapes(make: Callable[[], Router]) -> None:
    """No token, one token and (T, D) work; a bad shape and NaN are a ValueError in one line."""
    for router, D in _modes(make):
        batch = make_batch(router, D)
        for part in (batch[:, :0], batch[:0], batch[:1, :1]):
            r: Routing = route(router, part)
            assert r.num_tokens == part.hidden.shape[0] * part.hidden.shape[1]
            assert r.combine(r.dispatch(part.hidden.flatten(0, 1))).shape == (r.num_tokens, D)
            assert bool(r.aux_loss.isfinite())
        _same(route(router, batch[0]).to_dense(), route(router, batch[:1]).to_dense(), "(T, D) is one sequence")
        hidden = batch.hidden.clone()
        hidden[1, 2, 0] = torch.nan
        bad = {"hidden_states holds": batch.with_hidden(hidden)}
        if router.hidden_size is not None:
            bad["features"] = batch.with_hidden(batch.hidden[..., :-1])
        for words, wrong in bad.items():
            message = _error_of(router, wrong)
            assert words in message, f"no clear ValueError where {words!r} was due: {message}"
            assert "\n" not in message, "an error is one line"


def _error_of(router: Router, batch: Batch) -> str:
    try:
        route(router, batch)
    except ValueError as error:
        return str(error)
    return "nothing was raised"


class _Identity(nn.Module):
    def forward(self, x_TD: Tensor, routing: Routing) -> Tensor:
        return routing.combine(routing.dispatch(x_TD))


def check_layer(make: Callable[[], Router]) -> None:
    """Identity experts give Σ weights · x; forced to all experts, the layer is the dense mixture."""
    for router, D in _modes(make):
        batch = make_batch(router, D)
        x_TD = batch.hidden.flatten(0, 1)
        y, r = route(MoE(router, _Identity()), batch)
        if isinstance(r, SoftRouting):
            _check_soft_layer(router, batch)
            continue
        if not r.weights_on_input:
            _same(y.flatten(0, 1), x_TD * r.to_dense().sum(1, keepdim=True), "identity experts")
        E = router.num_experts
        experts = Experts(E, D, 8)
        everyone = torch.arange(E).expand(B, S, E)
        y, r = route(MoE(router, experts), batch, forced=everyone)
        assert bool((r.experts_per_token == E).all())
        outputs = torch.stack([_one_expert(experts, e, x_TD, r.to_dense()[:, e], r.weights_on_input) for e in range(E)])
        _same(y.flatten(0, 1), outputs.sum(0), "the dense mixture")


def _check_soft_layer(router: Router, batch: Batch) -> None:
    experts = Experts(router.num_experts, batch.hidden.shape[2], 8)
    y, r = route(MoE(router, experts), batch)
    slots_BEPD = torch.einsum("bsep,bsd->bepd", r.dispatch_weights, batch.hidden)
    ones = slots_BEPD.new_ones(slots_BEPD[:, 0, :, 0].numel())
    outputs = [
        _one_expert(experts, e, slots_BEPD[:, e].flatten(0, 1), ones, False).view_as(slots_BEPD[:, e])
        for e in range(router.num_experts)
    ]
    _same(y, torch.einsum("bsep,ebpd->bsd", r.combine_weights, torch.stack(outputs)), "mixtures of slots")


def _one_expert(experts: Experts, e: int, x_TD: Tensor, weight_T: Tensor, on_input: bool) -> Tensor:
    if on_input:
        x_TD = x_TD * weight_T[:, None]
    gate, up = (x_TD @ experts.gate_up_proj[e].T).chunk(2, dim=1)
    y_TD = (nn.functional.silu(gate) * up) @ experts.down_proj[e].T
    return y_TD if on_input else y_TD * weight_T[:, None]


CHECKS: tuple[Callable[[Callable[[], Router]], None], ...] = (
    check_conservation,
    check_max_load,
    check_layout,
    check_gradients,
    check_mask,
    check_token_wise,
    check_causal,
    check_cache,
    check_state,
    check_low_precision,
    check_extremes,
    check_shapes,
    check_layer,
)
