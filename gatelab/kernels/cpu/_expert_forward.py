"""The experts' forward pass, in blocks of rows whose intermediate results stay in cache."""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gatelab.kernels.cpu._block_activation import BlockActivation
from gatelab.kernels.cpu._cores import run
from gatelab.kernels.cpu._fused import few_rows, fused
from gatelab.kernels.cpu._gemm import gather, linear, needs_memory, padded
from gatelab.kernels.cpu._memory import Scratch, Scratches, empty
from gatelab.kernels.cpu.group_by_expert import group_by_expert

_BLOCK_ROWS, _BLOCK_ROWS_OF_FLOATS = 512, 320
_BLOCKS = 16  # at least, if there are that many experts, so that they balance
_FUSED_ROWS = 48  # with fewer, reordering a weight takes more than a tenth of the fused kernel's time
_FEW_ROWS = 1  # per expert


@dataclass(frozen=True)
class Arguments:
    """What both passes read. Axes as in `gatelab.kernels.expert_mlp`; n rows of a block, P rows when padded."""

    x_TD: Tensor
    token_index: Tensor
    expert_offsets: Tensor
    weights: Tensor
    up_proj: Tensor
    down_proj: Tensor
    up_bias: Tensor | None
    down_bias: Tensor | None
    activation: str
    weights_on_input: bool

    @property
    def block_rows(self) -> int:
        """About so many rows at once: fewer reorder weights more often, more need more memory on each core."""
        return _BLOCK_ROWS if self.x_TD.itemsize < 4 else _BLOCK_ROWS_OF_FLOATS

    @property
    def multiply_adds(self) -> int:
        """Of `up_proj`, in the dtypes whose blocks are shared out; 0 for others: all cores do each product."""
        are_shared_out = self.x_TD.dtype in (torch.float32, torch.bfloat16)
        return self.token_index.shape[0] * self.up_proj[0].numel() if are_shared_out else 0


class Piece(NamedTuple):
    """Rows `start:stop` of expert e."""

    e: int
    start: int
    stop: int

    @property
    def is_small(self) -> bool:
        """Whether it needs no padding."""
        return padded(self.stop - self.start) == self.stop - self.start


def forward(arguments: Arguments, keep_hidden: bool) -> tuple[Tensor, Tensor]:
    """y (T, D) and, if `keep_hidden`, what enters the activation (M, J); else (0, J)."""
    x_TD, on_input, J = arguments.x_TD, arguments.weights_on_input, arguments.up_proj.shape[1]
    if not keep_hidden and (y_TD := few_rows(arguments)) is not None:
        return y_TD, x_TD.new_empty(0, J)
    activation = BlockActivation(arguments.activation)
    offsets = arguments.expert_offsets.tolist()
    weights = arguments.weights.to(x_TD.dtype)
    hidden = empty((arguments.token_index.shape[0] if keep_hidden else 0, J), x_TD.dtype)
    hidden[offsets[-1] :].zero_()

    pieces = _cut_all(offsets, min(_BLOCK_ROWS, max(_FUSED_ROWS, offsets[-1] // _BLOCKS)))
    if kernel := fused(arguments, pieces, hidden if keep_hidden else None):
        compute, rows_ND = kernel
        run(compute, pieces, [stop - start for _, start, stop in pieces], arguments.multiply_adds)
        return sum_by_token(rows_ND, arguments.token_index, x_TD.shape[0]).to(x_TD.dtype), hidden
    rows_ND = empty((offsets[-1], x_TD.shape[1]), x_TD.dtype)
    block_rows = arguments.block_rows
    pieces = _cut_all(offsets, block_rows)
    is_reading = offsets[-1] <= _FEW_ROWS * len(pieces)  # weights, most of the time: the cores do that together
    blocks = join(pieces, block_rows if is_reading else min(block_rows, offsets[-1] // _BLOCKS))
    sizes = [block[-1].stop - block[0].start for block in blocks]
    scratches = scratches_for(max(sizes, default=0), arguments)

    def work(block: list[Piece]) -> None:
        with scratches.lend() as scratch:
            start, stop = block[0].start, block[-1].stop
            x_PD = gather(x_TD, arguments.token_index[start:stop], scratch)
            if on_input:
                x_PD[: stop - start].mul_(weights[start:stop, None])
            h_PJ = product(block, x_PD, arguments.up_proj, arguments.up_bias, scratch)
            if keep_hidden:
                hidden[start:stop] = h_PJ[: stop - start]
            a_PI, _ = activation.forward(h_PJ, scratch)
            out_PD = product(block, a_PI, arguments.down_proj, arguments.down_bias, scratch)
            rows_ND[start:stop] = out_PD[: stop - start]

    run(work, blocks, sizes, 0 if is_reading else arguments.multiply_adds)
    return sum_by_token(rows_ND, arguments.token_index, x_TD.shape[0], None if on_input else weights), hidden


def _cut_all(offsets: list[int], about: int) -> list[Piece]:
    borders = enumerate(pairwise(offsets))
    return [piece for e, (start, stop) in borders if start < stop for piece in cut(e, start, stop, about)]


def cut(e: int, start: int, stop: int, about: int) -> list[Piece]:
    """Equal pieces of about so many rows, which together are the rows `start:stop` of expert e."""
    count = max(1, round((stop - start) / about))
    borders = [start + i * (stop - start) // count for i in range(count + 1)]
    return [Piece(e, low, high) for low, high in pairwise(borders) if low < high]


def join(pieces: list[Piece], most_rows: int) -> list[list[Piece]]:
    """Blocks of pieces that are too small to need padding, and of one piece each where they do.

    What is done with the rows of a block at once is done in a few Python steps instead of as many for each expert.
    """
    blocks: list[list[Piece]] = []
    for piece in pieces:
        fits = blocks and piece.stop - blocks[-1][0].start <= most_rows
        if fits and blocks[-1][-1].is_small and piece.is_small:
            blocks[-1].append(piece)
        else:
            blocks.append([piece])
    return blocks


def scratches_for(most_rows: int, arguments: Arguments) -> Scratches:
    """For either pass: of the same size, what one leaves idle the other recycles."""
    _, D, I = arguments.down_proj.shape
    columns = (D, D, I, I, arguments.up_proj.shape[1]) + ((D, I) if needs_memory(arguments.x_TD.dtype) else ())
    return Scratches(padded(most_rows), columns, arguments.x_TD.dtype)


def product(block: list[Piece], x_PA: Tensor, weight_EBA: Tensor, bias_EB: Tensor | None, scratch: Scratch) -> Tensor:
    """(P, B), each row times its expert's weightᵀ + bias."""
    if len(block) == 1:
        e = block[0].e
        return linear(x_PA, weight_EBA[e], row(bias_EB, e), scratch)
    out_PB = scratch.take(x_PA.shape[0], weight_EBA.shape[1])
    for e, start, stop in block:
        rows = slice(start - block[0].start, stop - block[0].start)
        out_nB = out_PB[rows]
        if (part_nB := linear(x_PA[rows], weight_EBA[e], row(bias_EB, e), out_nB)) is not out_nB:
            out_nB.copy_(part_nB)
    return out_PB


def row(bias: Tensor | None, e: int) -> Tensor | None:
    """Expert e's row of a bias, if there is one."""
    return None if bias is None else bias[e]


def sum_by_token(rows_ND: Tensor, token_index: Tensor, num_tokens: int, weights: Tensor | None = None) -> Tensor:
    """y (T, D): each token's rows, weighted, summed in ascending order of expert in at least float32."""
    N = rows_ND.shape[0]
    if N == 0:
        return rows_ND.new_zeros(num_tokens, rows_ND.shape[1])
    order, starts = group_by_expert(token_index[:N], num_tokens)
    weights = None if weights is None else weights[order]
    return F.embedding_bag(order, rows_ND, starts[:-1], mode="sum", per_sample_weights=weights)
