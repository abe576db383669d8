"""What a published language model is made of, and what follows from that alone.

A model is `blocks` of parts (`gatelab.zoo.parts`) between two tables. Every part answers one question: how many
parameters it stores, how many of them one token uses, and how many FLOPs that token costs. All the rest are sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gatelab.zoo.parts import EMBEDDING, UNEMBEDDING, MoE, Part, Tally, add, matrices, vectors

BITS = {"bf16": 16, "int8": 8, "int4": 4}


@dataclass(frozen=True)
class Block:
    """`count` equal layers: one or more `parts` and the `norms` between them, each a vector of D (two with a bias)."""

    count: int
    parts: tuple[Part, ...]
    norms: int = 2
    norm_bias: bool = False

    def tallies(self, hidden_size: int, context: int) -> Iterator[Tally]:
        """The tallies of all `count` layers."""
        for part in self.parts:
            yield from (tally * self.count for tally in part.tallies(hidden_size, context))
        yield vectors(self.count * self.norms * (1 + self.norm_bias) * hidden_size)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The shape of a decoder-only language model.

    A tied table is counted once, as the output matrix: it is multiplied there, and only looked up at the input.

    Args:
        hidden_size: D.
        vocab_size: rows of the embedding table, and of the output matrix if it has its own.
        blocks: the layers, equal ones together.
        tie_embeddings: whether the output matrix is the embedding table.
        norm_bias: whether the final norm has a bias.
        head_bias: whether the output matrix has one.
        mtp: the layer of the multi-token-prediction module that is published beside the model. No figure of the
            model contains it; `mtp_params` is its size.
    """

    hidden_size: int
    vocab_size: int
    blocks: tuple[Block, ...]
    tie_embeddings: bool = False
    norm_bias: bool = False
    head_bias: bool = False
    mtp: Block | None = None

    def _tallies(self, context: int) -> Iterator[Tally]:
        table = self.vocab_size * self.hidden_size
        if not self.tie_embeddings:
            yield Tally(EMBEDDING, table, table)
        for block in self.blocks:
            yield from block.tallies(self.hidden_size, context)
        yield matrices(UNEMBEDDING, table)
        yield vectors((1 + self.norm_bias) * self.hidden_size + self.head_bias * self.vocab_size)

    def by_role(self, context: int = 4096) -> dict[str, Tally]:
        """Parameters, active parameters and forward FLOPs per token, summed by role ("attention", "router", …)."""
        return add(self._tallies(context))

    def moes(self) -> Iterator[tuple[int, MoE]]:
        """The MoE parts, each with the number of layers that have it; none in a dense model."""
        return ((block.count, part) for block in self.blocks for part in block.parts if isinstance(part, MoE))

    @property
    def num_layers(self) -> int:
        return sum(block.count for block in self.blocks)

    @property
    def total_params(self) -> int:
        """Everything stored: both tables, norms and biases included, the MTP module not."""
        return sum(tally.params for tally in self.by_role().values())

    @property
    def active_params(self) -> int:
        """What one token uses, both tables in full; where there are zero-computation experts, the most it can use."""
        return sum(tally.active_params for tally in self.by_role().values())

    @property
    def active_params_no_input_embedding(self) -> int:
        """Active parameters without the table that is only looked up (all of them where the tables are tied)."""
        return self.active_params - self._table(EMBEDDING)

    @property
    def active_params_no_embeddings(self) -> int:
        """Active parameters of the layers alone, without either table."""
        return self.active_params_no_input_embedding - self._table(UNEMBEDDING)

    @property
    def mean_idle_params(self) -> int:
        """How much less than `active_params` the mean token uses: what zero-computation experts save.

        Taken at equal load on all E + Z experts; 0 without zero-computation experts.
        """
        return round(sum(count * moe.mean_idle_params(self.hidden_size) for count, moe in self.moes()))

    @property
    def mtp_params(self) -> int:
        """Size of the multi-token-prediction module: its layer, the (D, 2D) projection before it and three norms.

        It shares the tables of the model (DeepSeek-V3 report, arXiv 2412.19437, section 2.2).
        """
        if self.mtp is None:
            return 0
        layer = sum(tally.params for tally in self.mtp.tallies(self.hidden_size, context=1))
        return layer + 2 * self.hidden_size**2 + 3 * self.hidden_size

    def flops_per_token(self, context: int = 4096) -> int:
        """Forward FLOPs of one token that attends to `context` positions, itself included.

        2 × the active weights in matrix products, plus the products of attention. Look-ups, norms, activations,
        softmax, rotary embedding and the sort behind top-k are left out.
        """
        return sum(tally.flops for tally in self.by_role(context).values())

    def training_flops_per_token(self, context: int = 4096) -> int:
        """Forward and backward: two products in the backward pass for each one forward; nothing recomputed."""
        return 3 * self.flops_per_token(context)

    def weight_bytes(self, precision: str) -> int:
        """Bytes of all weights at "bf16", "int8" or "int4", without the scales a quantised format adds."""
        return self.total_params * BITS[precision] // 8

    def _table(self, role: str) -> int:
        tally = self.by_role().get(role)
        return tally.params if tally else 0
