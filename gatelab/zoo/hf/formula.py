"""What an expert computes, found by trying the layouts that its shapes allow until one gives its answers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelab.kernels.activations import resolve_activation
from gatelab.zoo.hf.links import Link
from gatelab.zoo.hf.stacks import Stack

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Formula:
    """output(down(activation(up(x)))), by the parameters it is made of.

    Attributes:
        up: one stack (ungated, or gate and up together), or two, gate first.
        down: the other matrix.
        up_bias, down_bias: like `up`, or none; one or none.
        transposed: of `up` and of `down`: stored as (in, out).
        gated: whether the activation takes 2·I features.
        interleaved: gate and up rows alternate.
        activation: a name of `gatelab.kernels`, or a function (n, J) -> (n, I), gate first.
        output: what an expert's output passes before it is weighed (a norm), with its name in the block; or None.
    """

    up: tuple[Stack, ...]
    down: Stack
    up_bias: tuple[Stack, ...]
    down_bias: Stack | None
    transposed: tuple[bool, bool]
    gated: bool
    interleaved: bool
    activation: str | Function
    output: tuple[str, nn.Module] | None = None

    def up_rows(self, stacks: Sequence[Stack], named: Mapping[str, Tensor], e: int) -> Tensor:
        """(J, D) of expert e, or its (J,) bias; gate half first."""
        rows = torch.cat([_turned(s.expert(named, e), self.transposed[0]) for s in stacks])
        return torch.cat([rows[::2], rows[1::2]]) if self.interleaved else rows

    def put_up_rows(self, stacks: Sequence[Stack], rows: Tensor, named: Mapping[str, Tensor], e: int) -> None:
        """The inverse of `up_rows`, into the block's tensors."""
        if self.interleaved:
            rows = torch.stack(rows.chunk(2), dim=1).flatten(0, 1)
        for stack, part in zip(stacks, rows.chunk(len(stacks)), strict=True):
            stack.expert(named, e).copy_(_turned(part, self.transposed[0]))

    def down_rows(self, stack: Stack, named: Mapping[str, Tensor], e: int) -> Tensor:
        """(D, I) of expert e, or its (D,) bias. As good as its own inverse: a view."""
        return _turned(stack.expert(named, e), self.transposed[1])

    def __call__(self, x_nD: Tensor, named: Mapping[str, Tensor], e: int) -> Tensor:
        """Expert e on (n, D), in float32."""
        bias = self.up_rows(self.up_bias, named, e).float() if self.up_bias else None
        h_nJ = F.linear(x_nD, self.up_rows(self.up, named, e).float(), bias)
        a_nI = resolve_activation(self.activation).function(h_nJ)
        bias = None if self.down_bias is None else self.down_rows(self.down_bias, named, e).float()
        y_nD = F.linear(a_nI, self.down_rows(self.down, named, e).float(), bias)
        return y_nD if self.output is None else self.output[1](y_nD)

    def links(self, prefix: str) -> list[Link]:
        """Of `gate_up_proj`, `down_proj` and their biases, below `prefix`."""
        E = self.down.num_experts

        def up(name: str, stacks: tuple[Stack, ...]) -> Link:
            return Link(
                f"{prefix}.{name}",
                tuple(n for s in stacks for n in s.names),
                lambda named: torch.stack([self.up_rows(stacks, named, e) for e in range(E)]),
                lambda ours, named: [self.put_up_rows(stacks, ours[e], named, e) for e in range(E)],
            )

        def down(name: str, stack: Stack) -> Link:
            return Link(
                f"{prefix}.{name}",
                tuple(stack.names),
                lambda named: torch.stack([self.down_rows(stack, named, e) for e in range(E)]),
                lambda ours, named: [self.down_rows(stack, named, e).copy_(ours[e]) for e in range(E)],
            )

        links = [up("gate_up_proj", self.up), down("down_proj", self.down)]
        if self.up_bias:
            links.append(up("gate_up_proj_bias", self.up_bias))
        if self.down_bias is not None:
            links.append(down("down_proj_bias", self.down_bias))
        return links


def _turned(tensor: Tensor, transposed: bool) -> Tensor:
    return tensor.mT if transposed and tensor.dim() == 2 else tensor


def formulas(
    matrices: Sequence[Stack],
    vectors: Sequence[Stack],
    named: Mapping[str, Tensor],
    hidden_size: int,
    activations: Callable[[bool, bool, bool], Iterable[str | Function]],
    output: tuple[str, nn.Module] | None = None,
) -> Iterator[Formula]:
    """Every formula that the shapes allow and that uses every matrix and vector.

    Args:
        matrices, vectors: the experts' stacks.
        named: their tensors.
        hidden_size: of what experts read and write.
        activations: what to try, given whether the expert is gated, whether its rows alternate, and whether to try
            names or functions. Names come first.
        output: as in `Formula`.
    """
    turns = itertools.product((False, True), repeat=2)
    for by_name, (*up, down), (up_turned, down_turned) in itertools.product(
        (True, False), itertools.permutations(matrices), turns
    ):
        shapes = [_turned(s.expert(named, 0), up_turned).shape for s in up]
        out, I = _turned(down.expert(named, 0), down_turned).shape
        if out != hidden_size or any(shape[1] != hidden_size for shape in shapes):
            continue
        J = sum(shape[0] for shape in shapes)
        if J not in (I, 2 * I) or len(up) * I not in (I, J):
            continue
        gated = J == 2 * I
        for up_bias, down_bias in _biases(vectors, named, len(up), J, hidden_size):
            for interleaved in (False, True) if gated and len(up) == 1 else (False,):
                for activation in activations(gated, interleaved, by_name):
                    yield Formula(
                        up=tuple(up),
                        down=down,
                        up_bias=up_bias,
                        down_bias=down_bias,
                        transposed=(up_turned, down_turned),
                        gated=gated,
                        interleaved=interleaved,
                        activation=activation,
                        output=output,
                    )


def _biases(
    vectors: Sequence[Stack], named: Mapping[str, Tensor], ups: int, J: int, D: int
) -> Iterator[tuple[tuple[Stack, ...], Stack | None]]:
    for order in itertools.permutations(vectors):
        for split in {0, ups} & set(range(len(order) + 1)):
            up, down = order[:split], order[split:]
            if len(down) > 1 or any(s.expert(named, 0).shape[0] * ups != J for s in up):
                continue
            if not down or down[0].expert(named, 0).shape[0] == D:
                yield tuple(up), down[0] if down else None
