"""`to_hf` on blocks: the inverse of `from_hf`."""

import copy

import pytest
import torch
from hf_blocks import NAMED, tiny_block
from torch import nn

import gatelab
from gatelab.routers.balance import SignBias
from gatelab.zoo import UnsupportedBlock, from_hf, swap_router, to_hf

# Blocks with a reader of their own, or with modules around their experts.
OTHERS = [
    ("jetmoe", "JetMoeMoE"),
    ("doge", "DogeCDMoE"),
    ("inkling", "InklingMoE"),
    ("zaya", "ZayaSparseMoeBlock"),
    ("muse_spark", "MuseSparkMoE"),
    ("nemotron_h", "NemotronHMoE"),
    ("axk1", "AXK1MoE"),
]


def first(output: torch.Tensor | tuple) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize(("model", "name"), NAMED + OTHERS)
def test_changed_numbers_go_back_to_their_places(model, name):
    block = tiny_block(model, name)
    before = {n: t.clone() for n, t in block.state_dict().items()}
    moe = from_hf(block)
    assert to_hf(moe, block) is block
    assert all(torch.equal(before[n], t) for n, t in block.state_dict().items())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in moe.state_dict().values():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
        to_hf(moe, block)
        assert not any(torch.equal(before[n], t) for n, t in block.state_dict().items())
        for scale in (0.1, 1.0, 5.0):
            x = scale * torch.randn(2, 9, 32, generator=generator)
            y, wanted = moe(x)[0], first(block(x.clone())).reshape(x.shape)
            assert (y - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_a_block_keeps_its_dtype_its_mode_and_its_parameters():
    source = tiny_block("mixtral", "MixtralSparseMoeBlock")
    half = tiny_block("mixtral", "MixtralSparseMoeBlock", seed=1).to(torch.bfloat16).train()
    parameters = dict(half.named_parameters())
    to_hf(from_hf(source), half)
    assert half.training
    assert dict(half.named_parameters()).keys() == parameters.keys()
    for name, parameter in half.named_parameters():
        assert parameter is parameters[name]
        assert torch.equal(parameter, source.get_parameter(name).to(torch.bfloat16))


def test_what_was_not_made_of_such_a_block_is_refused():
    block = tiny_block("mixtral", "MixtralSparseMoeBlock")
    moe = from_hf(block)
    swapped = swap_router(copy.deepcopy(moe), "expert-choice")  # the same tensors, another gate
    biased = copy.deepcopy(moe)
    biased.router.balance.append(SignBias(8))
    before = {n: t.clone() for n, t in block.state_dict().items()}
    with pytest.raises(ValueError, match=r"gate of moe is Linear.* · ExpertChoice.*, that of MixtralSparseMoeBlock"):
        to_hf(swapped, block)
    with pytest.raises(ValueError, match=r"router\.balance\.0\.bias is \(8,\) in moe, nowhere in Mixtral"):
        to_hf(biased, block)
    with pytest.raises(ValueError, match=r"experts\.down_proj is \(8, 32, 24\) in moe, \(8, 32, 12\) in MixtralSparse"):
        to_hf(moe, tiny_block("mixtral", "MixtralSparseMoeBlock", intermediate_size=12))
    with pytest.raises(ValueError, match="moe is a Linear; pass what from_hf made"):
        to_hf(nn.Linear(3, 3), block)
    with pytest.raises(UnsupportedBlock, match="experts 0 and 1 get every token"):
        to_hf(moe, tiny_block("nllb_moe", "NllbMoeSparseMLP"))
    assert all(torch.equal(before[n], t) for n, t in block.state_dict().items())


def test_a_layer_of_ours_with_the_same_parts_goes_back_too():
    # Nothing hangs on where a MoE came from: the same recipe over the same shapes will do.
    block = tiny_block("qwen3_moe", "Qwen3MoeSparseMoeBlock", norm_topk_prob=True)
    moe = gatelab.MoE(gatelab.create_router("qwen3", 32, 8, 3), gatelab.Experts(8, 32, 16)).eval()
    to_hf(moe, block)
    x = torch.randn(2, 9, 32)
    with torch.no_grad():
        assert torch.allclose(block(x), moe(x)[0], atol=1e-6)
