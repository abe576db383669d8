"""A block's experts as ours."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelab.kernels.activations import resolve_activation
from gatelab.layers.experts import Experts
from gatelab.routers.routing import Routing
from gatelab.routers.soft_routing import SoftRouting
from gatelab.zoo.hf.activation import activations
from gatelab.zoo.hf.errors import UnsupportedBlock
from gatelab.zoo.hf.formula import Formula, formulas
from gatelab.zoo.hf.links import Link, module_links
from gatelab.zoo.hf.stacks import find_stacks


class NormedExperts(Experts):
    """Experts whose output passes a module, the same for all, before it is weighed (Muse Spark's norm).

    Args:
        output: (n, D) -> (n, D).
        *args, **kwargs: as `Experts`.
    """

    def __init__(self, output: nn.Module, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.output = output

    def forward(self, x_TD: Tensor, routing: Routing | SoftRouting) -> Tensor:
        if isinstance(routing, SoftRouting):
            return routing.combine(self(routing.dispatch(x_TD), routing.slots()))
        function = resolve_activation(self.activation).function
        routing = routing.compact()
        x_ND = routing.dispatch(x_TD)
        outs = [
            self.output(F.linear(function(F.linear(x_ND[start:stop], up)), down))
            for up, down, (start, stop) in zip(
                self.gate_up_proj, self.down_proj, pairwise(routing.expert_offsets.tolist()), strict=True
            )
        ]
        return routing.combine(torch.cat(outs))


@dataclass(frozen=True)
class Answers:
    """What experts made of a batch: of each token's x (T, D), ids and weights (T, K), the sum y (T, D)."""

    x: Tensor
    ids: Tensor
    weights: Tensor
    y: Tensor
    weights_on_input: bool = False

    def given_by(self, formula: Formula, named: Mapping[str, Tensor], kind: str = "zero") -> bool:
        """Whether the formula explains the first tokens, ids past its experts being of that kind."""
        E, n = formula.down.num_experts, min(len(self.x), 6)
        wanted = self.y[:n].float()
        got = torch.zeros_like(wanted)
        for t in range(n):
            x = self.x[t : t + 1].float()
            for e, w in zip(self.ids[t].tolist(), self.weights[t].float(), strict=True):
                if 0 <= e < E:
                    got[t] += formula(x * w, named, e)[0] if self.weights_on_input else formula(x, named, e)[0] * w
                elif e >= E and kind == "identity":
                    got[t] += x[0] * w
        tolerance = 1e-4 if self.y.dtype == torch.float32 else 5e-2
        return bool((got - wanted).abs().max() <= tolerance * wanted.abs().max())


def find_experts(
    experts: nn.Module,
    prefix: str,
    block: nn.Module,
    answers: Sequence[Answers],
    num_columns: int,
    kinds: Sequence[str] = ("identity", "zero"),
) -> tuple[Experts, list[Link], tuple[str, ...]]:
    """Our experts on the meta device, their links, and the kinds of zero-computation experts after them.

    Args:
        experts: the module that holds their tensors.
        prefix: in front of those tensors' names in the block.
        block: where an activation may be kept.
        answers: what they made of some tokens, batch by batch.
        num_columns: of the gate.
        kinds: what columns without an expert may be.

    Raises:
        UnsupportedBlock: no formula explains the answers.
    """
    named = {prefix + name: p.detach() for name, p in experts.named_parameters()}
    matrices, vectors = find_stacks(experts, prefix, num_columns)
    if len(matrices) not in (2, 3):
        raise UnsupportedBlock(f"its experts have {len(matrices)} matrices each; two or three are understood")
    E, D = min(stack.num_experts for stack in matrices), answers[0].x.shape[1]
    # Large hidden states overflow float16 in some experts.
    answers = [answer for answer in answers if bool(answer.y.isfinite().all())]
    if not answers:
        raise UnsupportedBlock("what its experts answer is not finite; give it weights first")
    with torch.no_grad():
        output = _output(experts, prefix, {n for s in (*matrices, *vectors) for n in s.names})
        for formula in formulas(matrices, vectors, named, D, partial(activations, experts, block), output):
            for kind in kinds[: None if num_columns > E else 1]:
                if all(answer.given_by(formula, named, kind) for answer in answers):
                    Z = num_columns - E
                    ours, links = make_experts(formula, named, (kind,) * Z)
                    return ours, links, (kind,) * Z
    raise UnsupportedBlock("what its experts compute is not understood")


def _output(experts: nn.Module, prefix: str, known: set[str]) -> tuple[str, nn.Module] | None:
    """The child that holds the parameters which are no expert's, with its name."""
    rest = [name for name, _ in experts.named_parameters() if prefix + name not in known]
    if not rest:
        return None
    owner = rest[0].rpartition(".")[0]
    if not owner or any(name.rpartition(".")[0] != owner for name in rest):
        raise UnsupportedBlock(f"what its experts do with {', '.join(rest)} is not understood")
    return prefix + owner, experts.get_submodule(owner)


def make_experts(formula: Formula, named: dict[str, Tensor], kinds: Sequence[str] = ()) -> tuple[Experts, list[Link]]:
    """Our experts on the meta device, `kinds` of zero-computation experts after them, and their links."""
    E = formula.down.num_experts
    D, I = formula.down_rows(formula.down, named, 0).shape
    biased = bool(formula.up_bias)
    if biased != (formula.down_bias is not None):
        raise UnsupportedBlock("its experts have a bias on one of two projections; both or none are understood")
    options = {
        "activation": formula.activation,
        "bias": biased,
        "gated": formula.gated,
        "zero_computation": kinds,
    }
    links = formula.links("experts")
    with torch.device("meta"):
        if formula.output is None:
            return Experts(E, D, I, **options), links
        name, output = formula.output
        ours = NormedExperts(copy.deepcopy(output), E, D, I, **options)
    return ours, [*links, *module_links("experts.output", name, output)]
