"""The experts' forward pass, expert by expert, in blocks whose intermediate results stay in cache."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gatelab.kernels.cpu._block_activation import BlockActivation
from gatelab.kernels.cpu._cores import run
from gatelab.kernels.cpu._gemm import gather, linear
from gatelab.kernels.cpu._memory import empty

_BLOCK_ROWS = 512


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
    def multiply_adds(self) -> int:
        """Of `up_proj`, where oneDNN does them; 0 for MKL, which divides its work over all cores by itself."""
        on_onednn = self.x_TD.dtype in (torch.float32, torch.bfloat16)
        return self.token_index.shape[0] * self.up_proj[0].numel() if on_onednn else 0


def forward(arguments: Arguments, keep_hidden: bool) -> tuple[Tensor, Tensor]:
    """y (T, D) and, if `keep_hidden`, what enters the activation (M, J); else (0, J)."""
    x_TD, on_input = arguments.x_TD, arguments.weights_on_input
    activation = BlockActivation(arguments.activation)
    offsets = arguments.expert_offsets.tolist()
    rows_ND = empty((offsets[-1], x_TD.shape[1]), x_TD.dtype)
    hidden = empty((arguments.token_index.shape[0] if keep_hidden else 0, arguments.up_proj.shape[1]), x_TD.dtype)
    hidden[offsets[-1] :].zero_()

    def work(experts: range) -> None:
        for e in experts:
            for start, stop in blocks(offsets[e], offsets[e + 1]):
                fill_rows(e, start, stop)

    def fill_rows(e: int, start: int, stop: int) -> None:
        n, tokens_n, weight_n1 = stop - start, arguments.token_index[start:stop], arguments.weights[start:stop, None]
        x_PD = gather(x_TD, tokens_n)
        if on_input:
            x_PD[:n].mul_(weight_n1)
        h_nJ = linear(x_PD, arguments.up_proj[e], row(arguments.up_bias, e))[:n]
        if keep_hidden:
            hidden[start:stop] = h_nJ
        a_PI, _ = activation.forward(h_nJ)
        if not on_input:
            a_PI[:n].mul_(weight_n1)  # weighing the I inputs of the linear down_proj weighs its D outputs
        rows_ND[start:stop] = linear(a_PI, arguments.down_proj[e])[:n]
        if (bias_D := row(arguments.down_bias, e)) is not None:
            rows_ND[start:stop].add_(bias_D if on_input else weight_n1 * bias_D)

    run(work, offsets, arguments.multiply_adds)
    return sum_by_token(rows_ND, arguments.token_index, x_TD.shape[0]), hidden


def blocks(start: int, stop: int) -> list[tuple[int, int]]:
    """(start, stop) of equal blocks of about `_BLOCK_ROWS` rows, which together are `start:stop`."""
    count = max(1, round((stop - start) / _BLOCK_ROWS))
    borders = [start + i * (stop - start) // count for i in range(count + 1)]
    return [(low, high) for low, high in pairwise(borders) if low < high]


def row(bias: Tensor | None, e: int) -> Tensor | None:
    """Expert e's row of a bias, if there is one."""
    return None if bias is None else bias[e]


def sum_by_token(rows_ND: Tensor, token_index: Tensor, num_tokens: int) -> Tensor:
    """y (T, D): the sum of each token's rows in ascending order of expert, accumulated in at least float32."""
    N = rows_ND.shape[0]
    if N == 0:
        return rows_ND.new_zeros(num_tokens, rows_ND.shape[1])
    tokens = token_index[:N].numpy()
    # NumPy sorts 16-bit integers by radix, eight times as fast as longer ones
    order = np.argsort(tokens.astype(np.int16) if num_tokens < 2**15 else tokens, kind="stable")
    starts = np.zeros(num_tokens, np.int64)
    np.cumsum(np.bincount(tokens, minlength=num_tokens)[:-1], out=starts[1:])
    return F.embedding_bag(torch.from_numpy(order), rows_ND, torch.from_numpy(starts), mode="sum")
