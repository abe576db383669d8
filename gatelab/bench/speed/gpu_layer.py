"""The whole layer on a GPU, gate included, against a dense layer of the same active FLOPs and other libraries."""

import importlib.util
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from gatelab import kernels
from gatelab.bench.speed.alternate import Call
from gatelab.bench.speed.contest import DENSE, OURS, Case, step
from gatelab.bench.speed.gpu_experts import CASES
from gatelab.bench.speed.gpu_race import Check, distance, race
from gatelab.bench.speed.layer_peers import DenseSwiGLU
from gatelab.layers.experts import Experts
from gatelab.layers.moe import MoE
from gatelab.routers.registry import create_router

GROUPED_MM, SONIC = "transformers grouped_mm", "sonic-moe"
LAYER_CASES = tuple(case for case in CASES if case.T == 16384)  # two copies of the experts' gradients must fit


def run(
    cases: Iterable[Case] = LAYER_CASES,
    *,
    device: str = "cuda",
    rounds: int = 7,
    seed: int = 0,
    report: Callable[[dict], None] = lambda row: None,
) -> list[dict]:
    """Time our layer in Triton and, where installed, transformers' with the same weights and sonic-moe's with its own.

    Arguments as in `gatelab.bench.speed.gpu_experts.run`; `share` is the share of the dense layer's speed.
    """
    return [row for case in cases for row in _compare(case, device, rounds, seed, report)]


def _compare(case: Case, device: str, rounds: int, seed: int, report: Callable[[dict], None]) -> list[dict]:
    torch.manual_seed(seed)
    x_TD = torch.randn(case.T, case.D, dtype=case.dtype, device=device)
    with torch.device(device):
        router = create_router("topk-softmax", case.D, case.E, case.K)
        moe = MoE(router, Experts(case.E, case.D, case.I)).to(case.dtype)
        dense = DenseSwiGLU(case.D, case.K * case.I).to(case.dtype)
    with torch.no_grad(), kernels.use("reference"):
        expected_TD = moe(x_TD)[0]
        router.gate_dtype = case.dtype  # as in transformers' blocks: in bfloat16 other experts may come out
        expected_of_peers_TD = moe(x_TD)[0]
        router.gate_dtype = torch.float32
    layers: dict[str, nn.Module] = {DENSE: dense, OURS: _Triton(moe)}
    checks: dict[str, Check] = {DENSE: "-", OURS: _check(layers[OURS], x_TD, expected_TD)}
    if importlib.util.find_spec("transformers") is not None:
        layers[GROUPED_MM] = _transformers_block(router.get_parameter("score.weight"), moe.experts, case.K)
        checks[GROUPED_MM] = _check(layers[GROUPED_MM], x_TD, expected_of_peers_TD)
    if device == "cuda" and importlib.util.find_spec("sonicmoe") is not None:
        layers[SONIC], checks[SONIC] = _sonic(case), "its own weights"
    calls: dict[str, Call] = {name: step(layer, x_TD, case.backward) for name, layer in layers.items()}
    flops = (6 * case.D * case.I * case.K + 2 * case.D * case.E) * case.T * (3 if case.backward else 1)
    rows = race(
        case.facts,
        calls,
        checks,
        limit=DENSE,
        work=flops / 1e12,
        rate="teraflops",
        device=device,
        rounds=rounds,
        report=report,
    )
    if device == "cuda":
        del layers, calls, moe, router, dense
        torch.cuda.empty_cache()
    return rows


def _check(layer: nn.Module, x_TD: Tensor, expected_TD: Tensor) -> float:
    with torch.no_grad():
        return distance([layer(x_TD)], [expected_TD])


class _Triton(nn.Module):
    """Our layer, all in Triton whatever the device's own backend."""

    def __init__(self, moe: MoE) -> None:
        super().__init__()
        self.moe = moe

    def forward(self, x_TD: Tensor) -> Tensor:
        with kernels.use("triton"):
            return self.moe(x_TD)[0]


class _Block(nn.Module):
    """(T, D) to (T, D) through a block that takes (B, S, D)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x_TD: Tensor) -> Tensor:
        y = self.block(x_TD[None])
        return (y if isinstance(y, Tensor) else y[0])[0]


def _transformers_block(gate_ED: nn.Parameter, experts: nn.Module, top_k: int) -> nn.Module:
    """Mixtral's block over the same memory: a copy of the largest experts would not leave room for their gradients."""
    from transformers.models.mixtral.configuration_mixtral import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    E, D, I = experts.get_parameter("down_proj").shape
    config = MixtralConfig(hidden_size=D, intermediate_size=I, num_local_experts=E, num_experts_per_tok=top_k)
    config._experts_implementation = "grouped_mm"
    with torch.device("meta"):
        block = MixtralSparseMoeBlock(config)
    block.gate.weight = gate_ED
    for name in ("gate_up_proj", "down_proj"):
        setattr(block.experts, name, experts.get_parameter(name))
    return _Block(block)


def _sonic(case: Case) -> nn.Module:
    """Called as its README does."""
    from sonicmoe import KernelBackendMoE, MoE  # pyright: ignore[reportMissingImports]
    from sonicmoe.enums import ActivationType  # pyright: ignore[reportMissingImports]

    class Sonic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = MoE(
                num_experts=case.E,
                num_experts_per_tok=case.K,
                hidden_size=case.D,
                intermediate_size=case.I,
                activation_function=ActivationType.SWIGLU,
                add_bias=False,
                std=0.02,
            ).to(device="cuda", dtype=case.dtype)

        def forward(self, x_TD: Tensor) -> Tensor:
            return self.layer(x_TD, kernel_backend_moe=KernelBackendMoE.sonicmoe)[0]

    return Sonic()
