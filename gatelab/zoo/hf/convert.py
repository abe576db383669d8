"""`from_hf`: MoE blocks of transformers as ours."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from gatelab import kernels
from gatelab.layers.moe import MoE
from gatelab.zoo.hf.blocks import find_blocks, is_block
from gatelab.zoo.hf.errors import NO_ROOM, NotOneLayer, UnsupportedBlock, in_a_line
from gatelab.zoo.hf.host import host, hosted
from gatelab.zoo.hf.links import fill
from gatelab.zoo.hf.pair import evaluating
from gatelab.zoo.hf.plan import Plan
from gatelab.zoo.hf.precision import Precision, precisions
from gatelab.zoo.hf.read import read
from gatelab.zoo.hf.verify import Difference, verify


def from_hf(module: nn.Module) -> nn.Module:
    """A sparse MoE block of transformers as a `gatelab.MoE`; or a whole model with all of its blocks replaced.

        moe = gatelab.zoo.from_hf(model.model.layers[3].mlp)
        y, routing = moe(x)

    The layer has the block's numbers (copied), dtypes, device and mode, its shared experts, and a `.router` made of our
    parts. It is proved before it is returned: in evaluation mode, on random batches at scales 0.1, 1 and 10, it gives
    the block's output to 1e-5 of its largest entry in float32, and every token the same experts.

    Deviations in training: noise on the block's input (`router_jitter_noise`) is noise on what the gate reads, the
    experts read the clean input; dropout inside experts (Switch) is left out; a bias on the selection moves in
    `gatelab.update_routers`, where transformers leaves it. The balance loss of a model (`output_router_logits`) goes on
    working on our logits.

    Args:
        module: a block, or anything that holds blocks: a model, a decoder layer. What holds them is changed in place,
            all of it or, when one block is refused, nothing. A model then saves under our names, to be loaded into one
            that was converted likewise; `to_hf` gives one that saves as ever.

    Returns:
        The `MoE`, or the same `module` with a `MoE` behind every block's name.

    Raises:
        UnsupportedBlock: a block is not understood, or there is none; the message says what, and in a model where. If
            another exception led to it, the block's own or one of ours, the message says so and it is the `__cause__`.
    """
    if is_block(module):
        return convert(module)[0]
    converted: dict[str, tuple[nn.Module, MoE, Plan]] = {}
    passed_by: list[str] = []
    for name, block in find_blocks(module).items():
        try:
            converted[name] = (block, *convert(block))
        except NotOneLayer as error:
            passed_by.append(str(error))
        except UnsupportedBlock as error:
            raise UnsupportedBlock(f"{name}: {error}") from error.__cause__
    if not converted:
        done = hosted(module)
        reason = (
            f"its {len(done)} are converted already"
            if done
            else "it holds no experts, that is no child `experts` beside a `router` or `gate`"
        )
        reason = passed_by[0] if passed_by else reason
        raise UnsupportedBlock(f"{type(module).__name__} has no MoE block to convert: {reason}")
    for name, (block, moe, plan) in converted.items():
        host(module, name, block, moe, plan)
    if callable(save := getattr(module, "save_pretrained", None)):
        # Else transformers would split and rename our tensors as if they were the block's.
        vars(module)["save_pretrained"] = partial(save, save_original_format=False)
    return module


def convert(block: nn.Module) -> tuple[MoE, Plan]:
    """A `MoE` with the numbers, dtypes, device and mode of a block, verified; and what the block was read as.

    Raises:
        UnsupportedBlock: the block is not understood, or what was understood is not what it does.
    """
    try:
        if any(p.is_meta for p in block.parameters()):
            raise UnsupportedBlock("it is on the meta device; give it weights first")
        # Parts draw initial numbers that nobody sees; the caller's generator must not notice. And both sides are to
        # round alike: the last bit of a large logit is far more of a weight.
        with torch.random.fork_rng(devices=[]), evaluating(block), kernels.use("reference"):
            plan = read(block)
            moe = plan.moe.eval()
            fill(moe, block, plan.links)
            _prove(block, moe, plan)
    except NO_ROOM:
        raise
    except UnsupportedBlock as error:
        raise type(error)(f"{type(block).__name__} cannot be converted: {error}") from error.__cause__
    except Exception as error:
        raise UnsupportedBlock(
            f"{type(block).__name__} cannot be converted: gatelab itself failed on it with {in_a_line(error)}; "
            "that is a gap in gatelab, not in the block: please report it with the traceback above"
        ) from error
    return moe.train(block.training), plan


def _prove(block: nn.Module, moe: MoE, plan: Plan) -> None:
    """Verify, in the precision in which the block's gate works."""
    found: dict[Precision, Difference] = {}
    failures: list[UnsupportedBlock] = []
    for precision in precisions(block, moe, plan):
        precision.give(moe)
        try:
            found[precision] = verify(block, moe, plan)
        except UnsupportedBlock as error:
            failures.append(error)
    if not found:
        raise failures[0]
    # By the mean, which a single token sent elsewhere moves.
    min(found, key=lambda precision: (found[precision].experts, found[precision].mean)).give(moe)
