"""`swap_router`: another gate over the experts of a Hugging Face model, and a few steps of fine-tuning with it."""

import pytest
import torch
from hf_blocks import tiny_block
from hf_models import tiny_model, token_ids
from torch import nn

import gatelab
from gatelab import Experts, MoE
from gatelab.zoo import UnsupportedBlock, from_hf, swap_router
from gatelab.zoo.hf.host import hosted

STEPS = 12


def fine_tune(model: nn.Module) -> list[float]:
    """Losses of a plain loop on one batch."""
    ids = token_ids()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    gatelab.attach(optimizer, model)
    losses = []
    for _ in range(STEPS):
        with gatelab.record(model) as tape:
            loss = model(input_ids=ids, labels=ids).loss
            (loss + tape.aux_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("name", "init"),
    [("balanced-assignment", "keep"), ("loss-free", "keep"), ("expert-choice", "keep"), ("attention", "new")],
)
def test_a_swapped_model_keeps_its_experts_and_learns(name, init):
    model, original = tiny_model("qwen2_moe"), tiny_model("qwen2_moe")
    torch.manual_seed(0)
    assert swap_router(model, name, init=init) is model
    wanted = gatelab.create_router(name, 32, 8, 3)
    for place, moe in hosted(model).items():
        block = original.get_submodule(place)
        assert torch.equal(moe.experts.gate_up_proj, block.experts.gate_up_proj)
        assert torch.equal(moe.experts.down_proj, block.experts.down_proj)
        assert torch.equal(moe.shared.down_proj.weight, block.shared_expert.down_proj.weight)
        assert type(moe.router.select) is type(wanted.select)
        if init == "keep":
            assert torch.equal(moe.router.score.weight, block.gate.weight)
    state = {n: b.clone() for n, b in model.named_buffers() if ".balance." in n}
    losses = fine_tune(model.train())
    assert losses[-1] < 0.8 * losses[0]
    if name in ("balanced-assignment", "loss-free"):
        assert state
        assert all(not torch.equal(state[n], b) for n, b in model.named_buffers() if n in state)


def test_the_same_gate_kept_changes_nothing_and_a_new_one_does():
    ids, model = token_ids(), tiny_model("mixtral")
    with torch.no_grad():
        before = model(input_ids=ids).logits
        kept = swap_router(model, "topk-softmax", init="keep")(input_ids=ids).logits
        torch.manual_seed(0)
        fresh = swap_router(model, "topk-softmax", init="new")(input_ids=ids).logits
    assert torch.allclose(kept, before, atol=1e-5)
    assert not torch.allclose(fresh, before, atol=1e-2)


def test_keep_copies_what_has_the_same_name_and_shape():
    model = from_hf(tiny_model("deepseek_v3"))
    (old,) = (moe.router for moe in hosted(model).values())
    old.balance[0].bias.copy_(torch.arange(8.0))
    swap_router(model, "loss-free")
    (new,) = (moe.router for moe in hosted(model).values())
    assert torch.equal(new.score.weight, old.score.weight)
    assert torch.equal(new.balance[0].bias, torch.arange(8.0))
    swap_router(model, "topk-softmax")  # which has no bias
    assert not [name for name, _ in model.named_buffers() if name.endswith("balance.0.bias")]


def test_experts_per_token_stay_unless_said_otherwise():
    moe = from_hf(tiny_block("qwen3_moe", "Qwen3MoeSparseMoeBlock"))
    assert swap_router(moe, "topk-softmax") is moe
    assert moe.router.select.k == 3
    assert swap_router(moe, "topk-softmax", top_k=2).router.select.k == 2
    assert swap_router(moe, "dense", init="new").router.guarantees.experts_per_token == 8  # its own


def test_zero_computation_experts_dtype_and_mode_stay():
    moe = from_hf(tiny_block("longcat_flash", "LongcatFlashMoE").to(torch.bfloat16).train())
    swap_router(moe, "loss-free")
    assert moe.router.num_experts == 12
    assert moe.router.zero_computation == ("identity",) * 4
    assert moe.router.score.weight.dtype == torch.bfloat16
    assert moe.router.training
    y, _ = moe(torch.randn(2, 5, 32).to(torch.bfloat16))
    assert y.dtype == torch.bfloat16


def test_a_layer_of_ours_may_be_swapped_too_also_for_a_gate_that_reads_token_ids():
    moe = MoE(gatelab.create_router("topk-softmax", 16, 4, 2), Experts(4, 16, 8))
    swap_router(moe, "hash", init="new")
    x, ids = torch.randn(2, 5, 16), torch.randint(100, (2, 5))
    assert moe(x, token_ids=ids)[0].shape == x.shape


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("balanced-asignment", {}, r"^router 'balanced-asignment' is unknown; did you mean balanced-assignment"),
        ("topk-softmax", {"init": "copy"}, r"^init='copy' is unknown; choose 'keep' or 'new'$"),
        ("attention", {}, r"^init='keep': the score of 'attention' shares no tensor .*; pass init='new'$"),
        ("topk-softmax", {"flavour": 1}, r"^router 'topk-softmax' has no option 'flavour'"),
        ("moe-plus-plus", {}, r"^moe-plus-plus has 12 columns for 8 experts; swap in another gate$"),
        ("hash", {"init": "new"}, r"^hash does not route by hidden states alone: token_ids is missing"),
        ("oracle", {"init": "new"}, r"^oracle does not route by hidden states alone: labels are missing"),
    ],
)
def test_what_cannot_be_swapped_is_refused_in_one_line_and_nothing_changes(name, options, message):
    model = from_hf(tiny_model("qwen3_moe"))
    routers = [moe.router for moe in hosted(model).values()]
    with pytest.raises(ValueError, match=message) as refused:
        swap_router(model, name, **options)
    assert "\n" not in str(refused.value)
    assert all(moe.router is router for moe, router in zip(hosted(model).values(), routers, strict=True))


def test_models_without_layers_to_swap_are_refused():
    with pytest.raises(ValueError, match=r"^Linear has no MoE layer; pass a Hugging Face MoE model or a gatelab\.MoE$"):
        swap_router(nn.Linear(3, 3), "topk-softmax")
    plain = tiny_model("qwen3_moe")
    with pytest.raises(ValueError, match="is unknown"):
        swap_router(plain, "nonesuch")
    assert not hosted(plain)  # refused before anything was converted
    with pytest.raises(UnsupportedBlock, match="experts 0 and 1 get every token"):
        swap_router(nn.ModuleList([tiny_block("nllb_moe", "NllbMoeSparseMLP")]), "topk-softmax")
