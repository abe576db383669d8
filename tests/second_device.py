"""A second device, `twin`, whose tensors compute on the CPU: what mixes it with the CPU fails, as it would on a GPU.

Made of torch's hooks for backends that are written in Python. They cannot be taken back, so this is a program of its
own, which prints how far each of its results is from that on the CPU:

    python second_device.py gates | training | assignment
"""

import contextlib
import json
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

import gatelab
from gatelab import kernels
from gatelab.bench import config, train
from gatelab.bench.speed import gate as speed
from gatelab.bench.workloads import load_text

COPIES = ("aten::copy_", "aten::_to_copy", "aten::to")
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")  # by ids on the CPU too
SIZE = (2, 24, 32, 8, 2)  # B, S, D, E, K


class Twin(Tensor):
    """What is on the device; `inner` holds its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Twin":
        likeness = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        twin = Tensor._make_wrapper_subclass(cls, inner.shape, **likeness, device="twin:0")
        twin.inner = inner
        return twin

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.inner.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a tensor of another device has no memory that NumPy can read")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()


class OnTwin(TorchDispatchMode):
    """Brings tensors to the device, where an operation asks for that."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: tuple, kwargs: dict) -> Any:
    name = func._schema.name
    if name == "gatelab::balanced_assignment":  # made of other operations, and copies by itself
        with OnTwin(), alike("cpu"):
            return sys.modules["gatelab.kernels.balanced_assignment"]._solved(*args, **kwargs)
    device = next((a for a in (*args, *kwargs.values()) if isinstance(a, torch.device)), None)
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    twins = [t for t in tensors if isinstance(t, Twin)]
    strangers = [t for t in tensors if not isinstance(t, Twin) and t.dim() > 0]
    if twins and strangers and name not in COPIES + INDEXING:
        raise RuntimeError(f"{name} mixes tensors of twin:0 and of the CPU")
    plain_args, plain_kwargs = tree_map(_plain, (args, kwargs))
    out = func(*plain_args, **plain_kwargs)
    goes_there = bool(twins) if device is None else device.type == "twin"
    if name in ("aten::_to_copy", "aten::to"):
        if not goes_there:
            return out.clone() if twins else out
        return args[0] if twins and out is twins[0].inner else Twin(out if twins else out.clone())
    if name == "aten::copy_":
        return args[0]
    if not goes_there:
        return out
    wrapped = tree_map(lambda leaf: Twin(leaf) if isinstance(leaf, Tensor) else leaf, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _plain(leaf: Any) -> Any:
    if isinstance(leaf, torch.device):
        return torch.device("cpu")
    return leaf.inner if isinstance(leaf, Twin) else leaf


class _Backend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def set_up() -> None:
    backend_registration._setup_privateuseone_for_python_backend("twin", _Backend())
    torch._C._set_only_lift_cpu_tensors(True)  # so that torch.tensor(…, device=…) copies where a mode can see it
    torch.__future__.set_swap_module_params_on_conversion(True)  # a parameter's type changes with its device
    config.check_device = lambda name: None  # or it knows cpu and cuda alone
    train._now = lambda device: 0.0  # or it asks CUDA
    train.VALIDATION_BYTES = 2**11  # enough to see a device mixed


def on(device: str) -> contextlib.AbstractContextManager:
    return OnTwin() if device == "twin" else contextlib.nullcontext()


def alike(device: str) -> contextlib.AbstractContextManager:
    """A block in which the CPU rounds, and picks one of equally good prices, as the device does."""
    return kernels.use("reference") if device == "cpu" else contextlib.nullcontext()


def route(name: str, device: str) -> list[Tensor]:
    """Losses of three steps with updates between them, the last with padding, then the weights in evaluation, with
    padding too, and every gradient.
    """
    torch.manual_seed(0)
    gate, x = speed._create(name, SIZE), torch.randn(SIZE[:3])
    with on(device), alike(device):
        router, x = gate.router.to(device), x.to(device).requires_grad_()
        assert all(t.device.type == device for t in (*router.parameters(), *router.buffers()))
        results = []
        for step in range(3):
            torch.manual_seed(step)
            if step == 2:
                gate.inputs["token_mask"] = (torch.arange(SIZE[1]) < SIZE[1] - 5).expand(SIZE[:2]).to(device)
            routing = gate.route(x, training=True)
            weights = getattr(routing, "combine_weights", None)
            loss = (routing.weights if weights is None else weights).square().sum() + routing.aux_loss
            if loss.requires_grad:
                loss.backward()
            router.update([] if isinstance(routing, gatelab.SoftRouting) else [routing.summary()])
            results.append(loss.detach())
        routing = gate.route(x, training=False)
        weights = getattr(routing, "combine_weights", None)
        results.append((routing.weights if weights is None else weights).detach())
        leaves = (*router.parameters(), x)
        return [t.cpu() for t in (*results, *(leaf.grad for leaf in leaves if leaf.grad is not None))]


def cell(name: str, device: str) -> list[Tensor]:
    """What four steps of `gatelab compare` come to: training losses and validation scores."""
    settings = config.CompareConfig(routers=(name,), device=device, steps=4, batch_size=4, sequence_length=32)
    text = load_text(None, 32)
    with on(device), kernels.use("reference"):
        training = train.Training(settings, name, 64, 0, text)
        training.seconds = 1.0
        places: list[nn.Parameter | Tensor] = [*training.model.parameters(), *training.model.buffers()]
        assert all(tensor.device.type == device for tensor in places)
        while not training.finished:
            training.advance()
        result = training.result()
    scores = (result["val_bits_per_byte"], result["as_trained_bits_per_byte"])
    return [torch.tensor([*result["history"]["train_bits_per_byte"], *(s for s in scores if s is not None)])]


def solved(case: str, device: str) -> list[Tensor]:
    """An assignment, and where it is."""
    scores = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(40) < 37
    with on(device), alike(device):
        scores, mask = scores.to(device), mask.to(device)
        before = scores.clone()
        prices = torch.zeros(6, device=device, dtype=torch.float64) if case == "prices" else None
        found = kernels.balanced_assignment(scores, k=2, prices=prices, token_mask=mask if case == "mask" else None)
        assert all(field.device == scores.device for field in found)
        assert torch.equal(before, scores)
        return [field.cpu() for field in found]


WHAT = {
    "gates": (route, gatelab.list_routers),
    "training": (cell, lambda: ["topk-softmax", "attention-lfa", "expert-choice", "balanced-assignment"]),
    "assignment": (solved, lambda: ["plain", "prices", "mask"]),
}


def main(what: str) -> None:
    set_up()
    compute, names = WHAT[what]
    far = {}
    for name in names():
        here, there = compute(name, "cpu"), compute(name, "twin")
        pairs = zip(here, there, strict=True)
        far[name] = max(float((a.double() - b.double()).abs().max()) if a.numel() else 0.0 for a, b in pairs)
    print(json.dumps(far))


if __name__ == "__main__":
    main(sys.argv[1])
