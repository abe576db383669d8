"""The tile sizes of the expert kernels, and how many programs run: all of it in one place."""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gatelab.kernels import triton as package

# a `constexpr`, so that kernels can read it
INTERPRETED = tl.constexpr(package.INTERPRETED)
# Columns of a tile that the epilogue of the backward pass takes at a time, each part with its own partial sums.
PART = tl.constexpr(16 if INTERPRETED else 32)
Configs = list[triton.Config]


def _config(n: int, k: int, warps: int, stages: int, programs_per_sm: int) -> triton.Config:
    sizes = {"BLOCK_N": n, "BLOCK_K": k, "PROGRAMS_PER_SM": programs_per_sm}
    return triton.Config(sizes, num_warps=warps, num_stages=stages)


def _weights_config(m: int, n: int, k: int, warps: int, stages: int) -> triton.Config:
    return triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}, num_warps=warps, num_stages=stages)


# The interpreter takes small blocks: then small tensors have many tiles, and a program has several of them.
_INTERPRETER = [_config(32, 16, 4, 2, 1)]
_INTERPRETER_WEIGHTS = [_weights_config(16, 32, 16, 4, 2)]
# 48 KB a stage and one program per multiprocessor; or half of it and two, one multiplying while the other stores.
_HALF = [_config(256, 64, 8, 4, 1), _config(256, 64, 8, 3, 1), _config(128, 64, 4, 3, 2)]
# Two accumulators take the room of one twice as wide.
_HALF_TWICE = [_config(128, 64, 8, 4, 1), _config(128, 64, 8, 3, 1), _config(64, 64, 4, 3, 2)]
_FLOAT32 = [_config(64, 32, 8, 3, 1)]
_FEW_ROWS = [_config(64, 64, 4, 4, 2)]
_HALF_WEIGHTS = [
    _weights_config(128, 256, 64, 8, 4),
    _weights_config(128, 256, 64, 8, 3),
    _weights_config(128, 128, 64, 4, 3),
]
_FLOAT32_WEIGHTS = [_weights_config(64, 64, 32, 8, 3)]


def fitting(itemsize: int, rows: int, accumulators: int) -> Configs:
    """What is worth trying for so many bytes per element, rows per tile and accumulators."""
    if INTERPRETED:
        return _INTERPRETER
    if rows < 64:
        return _FEW_ROWS
    if itemsize == 4:
        return _FLOAT32
    return _HALF if accumulators == 1 else _HALF_TWICE


def fitting_weights(itemsize: int) -> Configs:
    """The same for the gradients of the weights, where no tile is of rows."""
    if INTERPRETED:
        return _INTERPRETER_WEIGHTS
    return _FLOAT32_WEIGHTS if itemsize == 4 else _HALF_WEIGHTS


def tuned(*doubling: str) -> Callable[[Any], Any]:
    """Autotune a kernel over tiles of rows, once per sizes of its matrices, rows per tile and dtype.

    Args:
        doubling: the flag of the kernel that gives it a second accumulator, if it has one.
    """
    every = _INTERPRETER if INTERPRETED else [*_HALF, *_HALF_TWICE, *_FLOAT32, *_FEW_ROWS]

    def prune(_: Configs, named: dict[str, Any], **options: Any) -> Configs:
        return fitting(named["a_ptr"].element_size(), options["BLOCK_M"], 1 + any(options[flag] for flag in doubling))

    key = ["N", "K", "BLOCK_M", *doubling]
    return triton.autotune(every, key=key, prune_configs_by={"early_config_prune": prune})


def tuned_weights() -> Callable[[Any], Any]:
    """The same for the gradients of the weights."""
    every = _INTERPRETER_WEIGHTS if INTERPRETED else [*_HALF_WEIGHTS, *_FLOAT32_WEIGHTS]

    def prune(_: Configs, named: dict[str, Any], **__: Any) -> Configs:
        return fitting_weights(named["a_ptr"].element_size())

    return triton.autotune(every, key=["M", "N"], prune_configs_by={"early_config_prune": prune})


def block_rows(rows: int, num_experts: int) -> int:
    """Rows per tile: the mean number of rows per expert, which is all that is known without a synchronisation."""
    return min(128, max(16, triton.next_power_of_2(rows // max(num_experts, 1))))


def programs(tensor: Tensor, most: int, per_multiprocessor: int) -> int:
    """Size of a persistent grid that shares up to `most` tiles."""
    if not tensor.is_cuda:
        return min(most, 3)
    return min(most, per_multiprocessor * torch.cuda.get_device_properties(tensor.device).multi_processor_count)


def precision() -> str:
    """What `tl.dot` makes of float32: as torch's own products."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
