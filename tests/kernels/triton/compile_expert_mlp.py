"""Compiles every launch of `expert_mlp` for a GPU that is not there, for Hopper in every configuration; prints JSON.

python compile_expert_mlp.py 90 float32 bfloat16      # compute capability 9.0: H100 and H200
"""

import json
import sys
from itertools import zip_longest

import torch
from compile_without_gpu import Absent, usage
from triton.runtime import driver
from triton.runtime.jit import JITFunction

import gatelab.kernels.triton
from gatelab import kernels
from gatelab.kernels.triton import _expert_configs as configs
from gatelab.kernels.triton import _expert_hidden, _expert_up, _expert_weights, _grouped_gemm


def compiled_launches(capability: int, dtypes: list[torch.dtype]) -> list[dict]:
    """Every different launch of `call`, with what ptxas made of it."""
    driver.set_active(Absent(capability))
    gatelab.kernels.triton.check_device = lambda device_type: None
    launches, seen, run = [], set(), JITFunction.run

    def compile_only(kernel, *args, grid, warmup, **options):
        types = tuple(a.dtype if isinstance(a, torch.Tensor) else a for a in args)
        key = (kernel.fn, types, tuple(sorted(options.items(), key=str)))
        if key not in seen:
            seen.add(key)
            binary = run(kernel, *args, grid=grid, warmup=True, **options)
            launches.append(
                {
                    "kernel": kernel.fn.__name__,
                    "dtype": str(args[0].dtype).removeprefix("torch."),
                    "rows": options.get("BLOCK_M"),
                    "wgmma": "wgmma" in binary.asm["ptx"],
                    **usage(binary),
                }
            )

    JITFunction.run = compile_only
    for dtype in dtypes:
        for rows in (16, 128) if dtype.itemsize == 2 else (128,):
            one, two = (configs.fitting(dtype.itemsize, rows, accumulators) for accumulators in (1, 2))
            most = 3 if capability == 90 else 1
            for chosen in zip_longest(one[:most], two[:most], configs.fitting_weights(dtype.itemsize)[:most]):
                choose(*(config or first for config, first in zip(chosen, (one[0], two[0], one[0]), strict=True)))
                call(dtype, rows, "swiglu")
            choose(one[0], one[0], configs.fitting_weights(dtype.itemsize)[0])
            call(dtype, rows, "gelu", weights_on_input=True)
    return launches


def choose(one, two, weights) -> None:
    """Leave the autotuners no choice."""
    _grouped_gemm._multiply_rows.configs = _expert_hidden._hidden_gradient.configs = [one]
    _expert_up._up.configs = [two]
    _expert_weights._outer_products.configs = [weights]


def call(dtype: torch.dtype, rows: int, activation: str, weights_on_input: bool = False) -> None:
    """Forward and backward with biases, of which every `rows` rows make a tile."""
    D, I, E = 512, 256, 1

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=dtype, requires_grad=True)

    J = 2 * I if activation == "swiglu" else I
    with kernels.use("triton"):
        kernels.expert_mlp(
            normal(rows, D),
            torch.arange(rows),
            torch.tensor([0, rows]),
            torch.ones(rows, requires_grad=True),
            normal(E, J, D),
            normal(E, D, I),
            up_bias=normal(E, J),
            down_bias=normal(E, D),
            activation=activation,
            weights_on_input=weights_on_input,
        ).backward(torch.randn(rows, D, dtype=dtype))


if __name__ == "__main__":
    print(json.dumps(compiled_launches(int(sys.argv[1]), [getattr(torch, name) for name in sys.argv[2:]])))
