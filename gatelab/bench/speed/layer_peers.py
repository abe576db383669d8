"""The expert layers of other libraries, with our weights where they compute the same function."""

import importlib.util
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatelab.layers.experts import Experts
from gatelab.routers.routing import Routing


class DenseSwiGLU(nn.Module):
    """The layer every time is compared with: hidden size D, intermediate size K·I, no experts."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(T, D) to (T, D)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def transformers_blocks(gate_ED: Tensor, experts: Experts, top_k: int) -> dict[str, nn.Module]:
    """Where installed, Mixtral's blocks: a top-k softmax gate over SwiGLU experts, with copies of these weights."""
    blocks: dict[str, nn.Module] = {}
    for name, config in _configs(experts, top_k):
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

        block = MixtralSparseMoeBlock(config)
        block.to(experts.down_proj.dtype)
        _copy_parameters(block, {"gate.weight": gate_ED, **_weights(experts, "experts.")})
        blocks[name] = _Sequence(block)
    return blocks


def transformers_experts(experts: Experts, routing: Routing) -> dict[str, nn.Module]:
    """Where installed, Mixtral's experts alone, with copies of these weights, along `routing`."""
    weights_TK, ids_TK = routing.topk()
    peers: dict[str, nn.Module] = {}
    for name, config in _configs(experts, ids_TK.shape[1]):
        from transformers.models.mixtral.modeling_mixtral import MixtralExperts

        peer = MixtralExperts(config).to(experts.down_proj.dtype)
        _copy_parameters(peer, _weights(experts))
        peers[name] = _Chosen(peer, ids_TK, weights_TK.to(experts.down_proj.dtype))
    return peers


def another_function(hidden_size: int, intermediate_size: int, num_experts: int, top_k: int) -> dict[str, nn.Module]:
    """Installed peers of the same sizes that compute something else: st-moe-pytorch drops what exceeds a capacity."""
    if importlib.util.find_spec("st_moe_pytorch") is None:
        return {}
    with warnings.catch_warnings(action="ignore"):  # of its type checker, about its types
        from st_moe_pytorch import MoE as SparseMoE  # pyright: ignore[reportMissingImports]

        sizes: dict[str, Any] = {"num_experts": num_experts, "gating_top_n": top_k}
        sizes["expert_hidden_mult"] = 1.5 * intermediate_size / hidden_size + 1e-6  # it takes two thirds of it
        layer = SparseMoE(hidden_size, **sizes)
    return {"st-moe-pytorch": _Sequence(layer)}


def _configs(experts: Experts, top_k: int) -> Iterator[tuple[str, Any]]:
    if importlib.util.find_spec("transformers") is None:
        return
    from transformers.models.mixtral.configuration_mixtral import MixtralConfig

    for implementation in ("eager", "grouped_mm"):
        config = MixtralConfig(
            hidden_size=experts.hidden_size,
            intermediate_size=experts.intermediate_size,
            num_local_experts=experts.num_experts,
            num_experts_per_tok=top_k,
        )
        config._experts_implementation = implementation
        yield f"transformers {implementation}", config


def _weights(experts: Experts, prefix: str = "") -> dict[str, Tensor]:
    return {f"{prefix}gate_up_proj": experts.gate_up_proj, f"{prefix}down_proj": experts.down_proj}


def _copy_parameters(module: nn.Module, weights: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, weight in weights.items():
            module.get_parameter(name).copy_(weight)


class _Sequence(nn.Module):
    """(T, D) to (T, D) through a layer that takes (B, S, D)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_TD: Tensor) -> Tensor:
        B = 8 if x_TD.shape[0] % 8 == 0 else 1
        y = self.layer(x_TD.view(B, -1, x_TD.shape[1]))
        return (y if isinstance(y, Tensor) else y[0]).reshape(x_TD.shape)


class _Chosen(nn.Module):
    """(T, D) to (T, D) through transformers' experts, with the tokens' choices given."""

    def __init__(self, experts: nn.Module, ids_TK: Tensor, weights_TK: Tensor) -> None:
        super().__init__()
        self.experts, self.ids_TK, self.weights_TK = experts, ids_TK, weights_TK

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.experts(x_TD, self.ids_TK, self.weights_TK)
