"""The expert layers of other libraries, with our weights where they compute the same function."""

import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatelab.layers.experts import Experts


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


def same_function(gate_ED: Tensor, experts: Experts, top_k: int) -> dict[str, nn.Module]:
    """Installed peers that compute what a top-k softmax gate over SwiGLU `experts` does, with copies of the weights."""
    if importlib.util.find_spec("transformers") is None:
        return {}
    from transformers.models.mixtral.configuration_mixtral import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    peers = {}
    for implementation in ("eager", "grouped_mm"):
        config = MixtralConfig(
            hidden_size=experts.hidden_size,
            intermediate_size=experts.intermediate_size,
            num_local_experts=experts.num_experts,
            num_experts_per_tok=top_k,
        )
        config._experts_implementation = implementation
        block: nn.Module = MixtralSparseMoeBlock(config)
        block.to(experts.down_proj.dtype)
        with torch.no_grad():
            weights = (gate_ED, experts.gate_up_proj, experts.down_proj)
            for name, weight in zip(("gate.weight", "experts.gate_up_proj", "experts.down_proj"), weights, strict=True):
                block.get_parameter(name).copy_(weight)
        peers[f"transformers {implementation}"] = _Sequence(block)
    return peers


def another_function(hidden_size: int, intermediate_size: int, num_experts: int, top_k: int) -> dict[str, nn.Module]:
    """Installed peers of the same sizes that compute something else: st-moe-pytorch drops what exceeds a capacity."""
    if importlib.util.find_spec("st_moe_pytorch") is None:
        return {}
    from st_moe_pytorch import MoE as SparseMoE  # pyright: ignore[reportMissingImports]

    sizes: dict[str, Any] = {"num_experts": num_experts, "gating_top_n": top_k}
    sizes["expert_hidden_mult"] = 1.5 * intermediate_size / hidden_size + 1e-6  # it takes two thirds of it
    layer = SparseMoE(hidden_size, **sizes)
    return {"st-moe-pytorch": _Sequence(layer)}


class _Sequence(nn.Module):
    """(T, D) to (T, D) through a layer that takes (B, S, D)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_TD: Tensor) -> Tensor:
        B = 8 if x_TD.shape[0] % 8 == 0 else 1
        y = self.layer(x_TD.view(B, -1, x_TD.shape[1]))
        return (y if isinstance(y, Tensor) else y[0]).reshape(x_TD.shape)
