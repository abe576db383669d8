"""`from_hf` on blocks that loop over a list of experts themselves: transformers 4, code beside a checkpoint, users."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatelab import MoE
from gatelab.routers.balance import SignBias
from gatelab.routers.select import GroupLimitedTopK
from gatelab.zoo import UnsupportedBlock, from_hf, to_hf
from gatelab.zoo.hf.host import hosted


class Gated(nn.Module):
    """An expert as a small module of its own."""

    def __init__(self, D: int, I: int, bias: bool = False) -> None:
        super().__init__()
        self.w1, self.w3 = nn.Linear(D, I, bias), nn.Linear(D, I, bias)
        self.w2 = nn.Linear(I, D, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Loop(nn.Module):
    """softmax, top-k, renormalise; a loop over experts and their rows; logits beside the output."""

    def __init__(self, D: int = 24, I: int = 9, E: int = 7, k: int = 3, bias: bool = False) -> None:
        super().__init__()
        self.gate, self.k = nn.Linear(D, E, bias=False), k
        self.experts = nn.ModuleList(Gated(D, I, bias) for _ in range(E))

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        x = hidden_states.flatten(0, -2)
        logits = self.gate(x)
        weights, ids = logits.softmax(-1).topk(self.k, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, j = torch.where(ids == e)
            y.index_add_(0, t, expert(x[t]) * weights[t, j, None])
        return y.view(hidden_states.shape), logits


class GroupedGate(nn.Module):
    """DeepSeek-V3's: sigmoid, groups of two-best, a bias on the choice, × 2.5."""

    def __init__(self, D: int, E: int, k: int, n_group: int, topk_group: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(E, D) / 5), nn.Parameter(torch.randn(E) / 10)
        self.k, self.n_group, self.topk_group = k, n_group, topk_group

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = (x @ self.weight.T).sigmoid()
        biased = (scores + self.bias).unflatten(1, (self.n_group, -1))
        best = biased.topk(2).values.sum(-1).topk(self.topk_group).indices
        closed = torch.ones(biased.shape[:2], dtype=torch.bool).scatter(1, best, False)
        ids = biased.masked_fill(closed[..., None], -torch.inf).flatten(1).topk(self.k).indices
        weights = scores.gather(1, ids)
        return ids, weights / (weights.sum(-1, keepdim=True) + 1e-20) * 2.5


class Sorted(nn.Module):
    """Rows sorted by expert, experts without rows passed over, a shared expert; as in code beside checkpoints."""

    def __init__(self, D: int = 20, E: int = 48, k: int = 4) -> None:
        super().__init__()
        self.gate, self.shared_experts = GroupedGate(D, E, k, 6, 3), Gated(D, 30)
        self.experts = nn.ModuleList(Gated(D, 8) for _ in range(E))

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = hidden_states.flatten(0, -2)
        ids, weights = self.gate(x)
        order = ids.flatten().argsort()
        rows, start = x[order // ids.shape[1]], 0
        y = torch.empty_like(rows)
        for e, n in enumerate(ids.flatten().bincount(minlength=len(self.experts)).tolist()):
            if n:
                y[order[start : start + n]] = self.experts[e](rows[start : start + n])
            start += n
        routed = (y.view(*ids.shape, -1) * weights[..., None]).sum(1)
        return routed.view(hidden_states.shape) + self.shared_experts(hidden_states)


class EveryToken(nn.Module):
    """All experts on all tokens, by name; σ of the chosen logits."""

    def __init__(self, D: int = 16, E: int = 5) -> None:
        super().__init__()
        self.router = nn.Linear(D, E)
        self.experts = nn.ModuleDict({f"expert_{e}": self.expert(D, e) for e in range(E)})

    def expert(self, D: int, e: int) -> nn.Module:
        return Gated(D, 8)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights(self.router(x))
        answers = torch.stack([expert(x) for expert in self.experts.values()], dim=-2)
        return (answers * weights[..., None]).sum(-2)

    def weights(self, logits: Tensor) -> Tensor:
        best, ids = logits.topk(2, dim=-1)
        return torch.zeros_like(logits).scatter(-1, ids, best.sigmoid())


class AboveAThreshold(EveryToken):
    def weights(self, logits: Tensor) -> Tensor:
        p = logits.softmax(-1)
        return p * (p > 0.2)


class Unequal(EveryToken):
    def expert(self, D: int, e: int) -> nn.Module:
        return Gated(D, 8 + e)


def first(output: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def made(kind: type[nn.Module], **options: int) -> nn.Module:
    torch.manual_seed(0)
    return kind(**options).eval()


@pytest.mark.parametrize(
    ("kind", "options"),
    [(Loop, {}), (Loop, {"k": 1}), (Loop, {"k": 7}), (Loop, {"bias": True}), (Sorted, {}), (EveryToken, {})],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_list_of_experts_is_converted_and_written_back(kind, options, dtype):
    block = made(kind, **options).to(dtype)
    moe = from_hf(block)
    assert isinstance(moe, MoE)
    assert {p.dtype for p in moe.parameters()} == {dtype}
    x = torch.randn(3, 11, moe.router.hidden_size).to(dtype)
    with torch.no_grad():
        wanted = first(block(x))
        assert (moe(x)[0] - wanted).abs().max() <= (1e-5 if dtype == torch.float32 else 0.03) * wanted.abs().max()
        other = copy.deepcopy(block)
        for parameter in other.parameters():
            parameter.zero_()
    to_hf(moe, other)
    assert all(torch.equal(a, b) for a, b in zip(block.parameters(), other.parameters(), strict=True))


def test_its_recipe_is_as_plain_as_that_of_any_other():
    moe = from_hf(made(Sorted))
    assert isinstance(moe.router.select, GroupLimitedTopK)
    assert (moe.router.select.k, moe.router.select.num_groups, moe.router.select.keep_groups) == (4, 6, 3)
    assert isinstance(moe.router.balance[0], SignBias)
    assert moe.router.weight.parts[1].factor == 2.5
    assert (moe.experts.num_experts, moe.experts.activation) == (48, "swiglu")  # more experts than hidden features
    assert moe.shared is not None


def test_chosen_experts_are_the_same():
    block = made(Loop)
    x = torch.randn(2, 9, 24)
    with torch.no_grad():
        _, ids = block.gate(x.flatten(0, 1)).softmax(-1).topk(3)
        _, routing = from_hf(block)(x)
    assert torch.equal(routing.topk()[1].sort().values, ids.sort().values)


def test_inside_a_model_a_tuple_stays_a_tuple():
    block = made(Loop)
    model = nn.ModuleList([copy.deepcopy(block)])
    from_hf(model)
    assert set(hosted(model)) == {"0"}
    x = torch.randn(2, 5, 24)
    for ours, theirs in zip(model[0](x), block(x), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (AboveAThreshold, r"AboveAThreshold cannot be converted: it gives some tokens \d experts and others \d$"),
        (Unequal, r"Unequal cannot be converted: its experts differ in size: expert_0\.w1\.weight is not"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(kind, reason):
    with pytest.raises(UnsupportedBlock, match=reason):
        from_hf(made(kind))
