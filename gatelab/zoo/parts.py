"""The parts of a layer: for each, its parameters, its active parameters and its FLOPs, by role.

D is the hidden size. FLOPs are forward, for one token, multiply and add counted apart: 2 per weight in a matrix
product, plus the products between positions that attention needs when the token attends to `context` positions (no
causal halving: this is the last token of a sequence of that length, and what papers and `flop_counter` count).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Protocol

EMBEDDING, UNEMBEDDING = "input embedding", "output embedding"
ATTENTION, FILTER, MLP = "attention", "localized filtering", "dense mlp"
ROUTER, EXPERTS, SHARED = "router", "experts", "shared experts"
VECTORS = "norms and biases"
ROLES = (EMBEDDING, ATTENTION, FILTER, MLP, ROUTER, EXPERTS, SHARED, UNEMBEDDING, VECTORS)


@dataclass(frozen=True)
class Tally:
    """What one role stores (`params`), what one token uses of it, and its forward FLOPs for that token."""

    role: str
    params: int
    active_params: int
    flops: int = 0

    def __mul__(self, count: int) -> Tally:
        return Tally(self.role, count * self.params, count * self.active_params, count * self.flops)


def matrices(role: str, weights: int, active: int | None = None, extra_flops: int = 0) -> Tally:
    """Matrices with `weights` entries, of which one token is multiplied with `active` (default all)."""
    active = weights if active is None else active
    return Tally(role, weights, active, 2 * active + extra_flops)


def vectors(count: int, active: int | None = None) -> Tally:
    """Norm weights, biases, sinks: stored and used, in no matrix product."""
    return Tally(VECTORS, count, count if active is None else active)


def add(tallies: Iterable[Tally]) -> dict[str, Tally]:
    """Sums by role, in the order of `ROLES`, without the roles that store nothing."""
    sums = {role: Tally(role, 0, 0) for role in ROLES}
    for t in tallies:
        s = sums[t.role]
        sums[t.role] = Tally(t.role, s.params + t.params, s.active_params + t.active_params, s.flops + t.flops)
    return {role: tally for role, tally in sums.items() if tally.params}


class Part(Protocol):
    def tallies(self, hidden_size: int, context: int) -> Iterator[Tally]: ...


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Grouped-query attention: `heads` queries share `kv_heads` keys and values of `head_dim`.

    Args:
        window: the most positions a token sees (sliding window or chunk); None = all.
        qk_norm: "head" = one norm vector of head_dim each for q and k; "full" = over all their heads together.
        sinks: one learned logit per head (gpt-oss).
        reuses_kv: keys and values come from the layer below (cross-layer attention), so no projections for them.
    """

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: Literal["head", "full"] | None = None
    sinks: bool = False
    reuses_kv: bool = False

    def tallies(self, hidden_size: int, context: int) -> Iterator[Tally]:
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        projected = queries + (0 if self.reuses_kv else 2 * keys)
        seen = min(context, self.window or context)
        # q·k and p·v: 2 FLOPs per position and query channel each.
        yield matrices(ATTENTION, hidden_size * (projected + queries), extra_flops=4 * seen * queries)
        norm = {None: 0, "head": 2 * self.head_dim, "full": queries + keys}[self.qk_norm]
        biases = self.qkv_bias * projected + self.out_bias * hidden_size
        yield vectors(norm + biases + self.sinks * self.heads)


@dataclass(frozen=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention (MLA), DeepSeek-V2, arXiv 2405.04434, section 2.1 and appendix C.

    Keys and values are expanded from a latent of `kv_lora_rank`, queries from one of `q_lora_rank` (None = directly);
    `rope_dim` channels of each query and one shared key carry the position. FLOPs are those of training and prefill,
    with keys and values expanded; decoding with absorbed matrices costs more per position and fewer bytes.
    """

    heads: int
    q_lora_rank: int | None
    kv_lora_rank: int = 512
    nope_dim: int = 128
    rope_dim: int = 64
    value_dim: int = 128

    def tallies(self, hidden_size: int, context: int) -> Iterator[Tally]:
        key_dim = self.nope_dim + self.rope_dim
        queries = self.heads * key_dim
        down = self.kv_lora_rank + self.rope_dim
        up = self.kv_lora_rank * self.heads * (self.nope_dim + self.value_dim)
        query = hidden_size * queries
        if self.q_lora_rank:
            query = self.q_lora_rank * (hidden_size + queries)
        out = self.heads * self.value_dim * hidden_size
        mixing = 2 * context * self.heads * (key_dim + self.value_dim)
        yield matrices(ATTENTION, query + hidden_size * down + up + out, extra_flops=mixing)
        yield vectors((self.q_lora_rank or 0) + self.kv_lora_rank)


@dataclass(frozen=True, kw_only=True)
class LightningAttention:
    """Linear attention with an output gate and a norm (MiniMax-01, arXiv 2501.08313, section 2.2).

    Its FLOPs do not depend on the context: each head updates and reads one (head_dim, head_dim) state per token.
    """

    heads: int
    head_dim: int

    def tallies(self, hidden_size: int, context: int) -> Iterator[Tally]:
        channels = self.heads * self.head_dim
        # q, k, v, output gate and output; k⊗v into the state and q·state, 2 FLOPs per state entry each.
        yield matrices(ATTENTION, 5 * hidden_size * channels, extra_flops=4 * channels * self.head_dim)
        yield vectors(channels)


@dataclass(frozen=True)
class LocalizedFiltering:
    """LFA before queries and keys (Yuan 2.0, arXiv 2311.15786): D → D/2 → D convolutions over two positions each."""

    def tallies(self, hidden_size: int, context: int) -> Iterator[Tally]:
        yield matrices(FILTER, 2 * hidden_size**2)
        yield vectors(hidden_size // 2 + hidden_size + hidden_size)  # two biases and the RMSNorm


@dataclass(frozen=True)
class GatedMLP:
    """A dense gated feed-forward network: gate, up and down."""

    intermediate_size: int

    def tallies(self, hidden_size: int, context: int) -> Iterator[Tally]:
        yield matrices(MLP, 3 * hidden_size * self.intermediate_size)


@dataclass(frozen=True, kw_only=True)
class MoE:
    """A sparse feed-forward network of gated experts, as published.

    Args:
        num_experts: E, those with weights.
        top_k: K.
        intermediate_size: I of one routed expert.
        router: the recipe of `gatelab.create_router` that routes like it.
        router_options: (option, value) where it deviates from that recipe's published defaults, by the names of
            its published configuration.
        shared_experts: how many experts every token visits; `shared_intermediate_size` is their width together.
        shared_gate: whether a (D → 1) sigmoid weighs the shared experts.
        zero_experts: Z, identity experts that the router may choose instead.
        attention_router: three (E, D) matrices and an (E, E) attention per token (Yuan 2.0-M32), not one matrix.
        router_bias: one value per expert, added to the logits or to the scores for selection.
        expert_bias: biases on both linear maps of each expert.
        activation: "swiglu", "geglu", or "swiglu-oss" for the clamped one of gpt-oss.
    """

    num_experts: int
    top_k: int
    intermediate_size: int
    router: str
    router_options: tuple[tuple[str, float], ...] = ()
    shared_experts: int = 0
    shared_intermediate_size: int = 0
    shared_gate: bool = False
    zero_experts: int = 0
    attention_router: bool = False
    router_bias: bool = False
    expert_bias: bool = False
    activation: str = "swiglu"

    def expert_params(self, hidden_size: int) -> int:
        """Weights of one routed expert, biases aside."""
        return 3 * hidden_size * self.intermediate_size

    def mean_idle_params(self, hidden_size: int) -> Fraction:
        """Weights that a token saves on average because E + Z equally loaded experts include Z empty ones."""
        saved = Fraction(self.top_k * self.zero_experts, self.num_experts + self.zero_experts)
        return saved * self.expert_params(hidden_size)

    def tallies(self, hidden_size: int, context: int) -> Iterator[Tally]:
        columns = self.num_experts + self.zero_experts
        if self.attention_router:
            # q kᵀ and its product with v, both (E, E): 2E² each.
            yield matrices(ROUTER, 3 * hidden_size * columns, extra_flops=4 * columns**2)
        else:
            yield matrices(ROUTER, hidden_size * columns)
        expert = self.expert_params(hidden_size)
        yield matrices(EXPERTS, self.num_experts * expert, active=self.top_k * expert)
        yield matrices(SHARED, hidden_size * (3 * self.shared_intermediate_size + self.shared_gate))
        yield vectors(self.router_bias * columns)
        biases = self.expert_bias * (2 * self.intermediate_size + hidden_size)
        yield vectors(self.num_experts * biases, active=self.top_k * biases)
