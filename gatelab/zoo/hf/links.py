"""Which tensor of ours is made of which of theirs: read one way to convert, the other way to write back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Link:
    """One of our tensors, by name in the `MoE`, and the tensors of the block that hold the same numbers.

    Attributes:
        ours: name in the `MoE`.
        theirs: names in the block.
        pull: their tensors, by name, to ours.
        push: writes ours into theirs, in place.
    """

    ours: str
    theirs: tuple[str, ...]
    pull: Callable[[Mapping[str, Tensor]], Tensor]
    push: Callable[[Tensor, Mapping[str, Tensor]], object]


def same(ours: str, theirs: str, shape: Sequence[int] | None = None) -> Link:
    """The same numbers, in our `shape` if theirs differs in dimensions of 1."""
    return Link(
        ours,
        (theirs,),
        lambda named: named[theirs] if shape is None else named[theirs].reshape(*shape),
        lambda tensor, named: named[theirs].copy_(tensor.reshape(named[theirs].shape)),
    )


def module_links(ours: str, theirs: str, module: nn.Module) -> list[Link]:
    """Links of a module that is kept as it is, `ours` and `theirs` being its name on either side."""
    return [same(f"{ours}.{name}", f"{theirs}.{name}") for name in module.state_dict()]


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers that are saved, by name."""
    return module.state_dict(keep_vars=True)


def dtype_of(block: nn.Module) -> torch.dtype:
    """Of the largest parameter."""
    return max(block.parameters(), key=lambda p: p.numel()).dtype


def fill(moe: nn.Module, block: nn.Module, links: Iterable[Link]) -> None:
    """Give a `MoE` on the meta device the numbers, dtypes, devices and `requires_grad` of a block.

    Raises:
        RuntimeError: a tensor of ours has no link.
    """
    theirs, missing = tensors(block), tensors(moe)
    for link in links:
        owner_name, _, name = link.ours.rpartition(".")
        owner, old = moe.get_submodule(owner_name), missing.pop(link.ours)
        sources = {source: theirs[source] for source in link.theirs}
        with torch.no_grad():
            value = link.pull(sources).clone().contiguous()
        if isinstance(old, nn.Parameter):
            learns = any(source.requires_grad for source in sources.values())
            owner.register_parameter(name, nn.Parameter(value, learns))
        else:
            setattr(owner, name, value.to(old.dtype))
    like = max(theirs.values(), key=lambda tensor: tensor.numel())
    for full_name, old in missing.items():
        if old.numel():
            raise RuntimeError(f"no link for {full_name}")
        owner_name, _, name = full_name.rpartition(".")
        empty = torch.empty(old.shape, dtype=like.dtype, device=like.device)
        moe.get_submodule(owner_name).register_parameter(name, nn.Parameter(empty))


def write(moe: nn.Module, block: nn.Module, links: Iterable[Link]) -> None:
    """Copy the numbers of a `MoE` into the tensors of the block, in place and in their dtype."""
    ours, theirs = tensors(moe), tensors(block)
    with torch.no_grad():
        for link in links:
            link.push(ours[link.ours], theirs)


@contextmanager
def holding(module: nn.Module, numbers: Mapping[str, Tensor]) -> Iterator[None]:
    """Other numbers in some of a module's tensors, and afterwards its own in all.

    Not `functional_call`, under which a module that converts its own parameters in its forward fails (Switch).
    """
    named = tensors(module)
    own = {name: tensor.data for name, tensor in named.items()}
    try:
        for name, value in numbers.items():
            named[name].data = value
        yield
    finally:
        for name, tensor in named.items():
            tensor.data = own[name]
