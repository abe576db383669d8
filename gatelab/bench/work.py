"""Work counted while it runs, by part of the model: matrix products, elementwise operations, sorting.

Matrix products are those of torch's own counter, so this is the independent check of `gatelab.bench.flops`; elementwise
and sorting work has no closed form that holds for every gate, and is listed beside.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.module_tracker import ModuleTracker

from gatelab import kernels

aten = torch.ops.aten
SORTS = {aten.sort, aten.topk, aten.kthvalue, aten.searchsorted}
REDUCTIONS = {
    *(aten._softmax, aten._log_softmax, aten.logsumexp, aten.cumsum),
    *(aten.sum, aten.mean, aten.amax, aten.amin, aten.max, aten.min, aten.var, aten.std),
}
MOVES = {aten.clone, aten.copy_, aten.fill, aten.fill_, aten.zero_, aten.zeros_like, aten.masked_fill_}


@dataclass
class Work:
    """Work of a forward.

    Attributes:
        matmul: FLOPs of matrix products by torch's formulas.
        elementwise: elements written by elementwise operations or read by reductions, 1 each whatever the operation.
        sorted: elements that went into a sort, a top-k or a binary search.
    """

    matmul: int = 0
    elementwise: int = 0
    sorted: int = 0


def count_work(
    function: Callable[[], Any], model: nn.Module, part_of: Callable[[str], str]
) -> tuple[dict[str, Work], Any]:
    """Run `function` and count what the modules of `model` do, with reference kernels and unfused attention.

    Args:
        function: calls the model.
        model: whose modules to tell apart.
        part_of: from the dotted name of the innermost module at work to the name of a part.

    Returns:
        The work by part, and what the function returned.
    """
    tracker = ModuleTracker()
    counter = _Counter(tracker, model, part_of)
    with torch.no_grad(), kernels.use("reference"), sdpa_kernel(SDPBackend.MATH), tracker, counter:
        returned = function()
    return dict(counter.work), returned


class _Counter(TorchDispatchMode):
    def __init__(self, tracker: ModuleTracker, model: nn.Module, part_of: Callable[[str], str]) -> None:
        super().__init__()
        self.tracker, self.part_of = tracker, part_of
        self.root = type(model).__name__ + "."
        self.work: defaultdict[str, Work] = defaultdict(Work)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would load its whole compiler, 0.1 GB and 1.6 s, to keep it from what is not compiled here."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inner = max(self.tracker.parents, key=len).removeprefix(self.root)
        work = self.work[self.part_of(inner)]
        packet = func.overloadpacket
        if packet in flop_registry:
            work.matmul += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        elif packet in SORTS:
            work.sorted += max(_sizes(args), default=0)
        elif packet in REDUCTIONS:
            work.elementwise += max(_sizes(args), default=0)
        elif torch.Tag.pointwise in func.tags and packet not in MOVES:
            work.elementwise += max(_sizes(out), default=0)
        return out


def _sizes(tree: Any) -> Iterator[int]:
    return (leaf.numel() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
