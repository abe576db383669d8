"""`from_hf` on whole models: in place, with the same logits, and everything around the layers goes on working."""

import pytest
import torch
import transformers
from hf_blocks import tiny_block
from hf_models import OWN, tiny_model, token_ids
from safetensors.torch import load_file
from torch import nn

import gatelab
from gatelab import MoE
from gatelab.zoo import UnsupportedBlock, from_hf, swap_router, to_hf
from gatelab.zoo.hf.host import hosted


def logits(model: nn.Module, ids: torch.Tensor, **options) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, **options).logits


@pytest.mark.parametrize("kind", OWN)
def test_logits_stay_also_with_padding_and_generation_with_a_cache_too(kind):
    model, ids = tiny_model(kind), token_ids()
    padding = torch.ones_like(ids)
    padding[0, :4] = 0
    before = logits(model, ids), logits(model, ids, attention_mask=padding)
    text = model.generate(ids, attention_mask=padding, max_new_tokens=5, do_sample=False)
    assert from_hf(model) is model
    assert len(hosted(model)) == (1 if kind == "deepseek_v3" else 2)
    after = logits(model, ids), logits(model, ids, attention_mask=padding)
    for old, new in zip(before, after, strict=True):
        assert (new - old).abs().max() <= 1e-4
    assert (before[0] - before[1]).abs().max() > 1e-2  # padding is seen
    assert torch.equal(model.generate(ids, attention_mask=padding, max_new_tokens=5, do_sample=False), text)


@pytest.mark.parametrize("first", ["recorded before", "not yet recorded"])
@pytest.mark.parametrize("kind", ["mixtral", "dbrx", "jetmoe", "gpt_oss", "granitemoe", "doge"])
def test_router_logits_and_the_balance_loss_on_them_stay(kind, first):
    model, ids = tiny_model(kind), token_ids()
    plain = tiny_model(kind)(input_ids=ids, labels=ids, output_router_logits=True)
    if first == "recorded before":  # the model has installed its hooks
        model(input_ids=ids, labels=ids, output_router_logits=True)
    ours = from_hf(model)(input_ids=ids, labels=ids, output_router_logits=True)
    assert len(ours.router_logits) == len(plain.router_logits) > 0
    for new, old in zip(ours.router_logits, plain.router_logits, strict=True):
        assert new.shape == old.shape
        assert (new - old).abs().max() <= 1e-5
    assert ours.aux_loss.item() == pytest.approx(plain.aux_loss.item(), rel=1e-5)
    assert ours.loss.item() == pytest.approx(plain.loss.item(), rel=1e-5)
    ours.aux_loss.backward()
    assert all(moe.router.score.weight.grad.abs().max() > 0 for moe in hosted(model).values())


@pytest.mark.parametrize("kind", ["gemma4_text", "inkling_text", "zaya", "llama4_text", "deepseek_v3"])
def test_router_logits_stay_whatever_a_model_calls_so(kind):
    # Gemma 4 hands out probabilities, Inkling the logits of its routed experts without those of the shared ones.
    model, ids = tiny_model(kind), token_ids()
    plain = tiny_model(kind)(input_ids=ids, output_router_logits=True).router_logits
    ours = from_hf(model)(input_ids=ids, output_router_logits=True).router_logits
    assert len(ours) == len(plain) > 0
    for new, old in zip(ours, plain, strict=True):
        assert new.shape == old.shape
        assert (new - old).abs().max() <= 1e-5


def test_a_swapped_gate_without_keys_says_so_where_a_model_takes_its_loss_of_keys():
    ids, model = token_ids(), swap_router(tiny_model("doge"), "topk-softmax", init="new")
    assert model(input_ids=ids, labels=ids).loss.isfinite()
    with pytest.raises(ValueError, match=r"no product keys, of which the model takes its balance loss; leave out"):
        model(input_ids=ids, labels=ids, output_router_logits=True)


def test_an_encoder_and_a_decoder_are_converted_and_drop_out_as_before():
    config = transformers.SwitchTransformersConfig(
        vocab_size=64, d_model=32, d_ff=24, d_kv=8, num_heads=4, num_layers=2, num_decoder_layers=2, num_experts=8,
        expert_capacity=2, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, decoder_start_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.SwitchTransformersForConditionalGeneration(config).eval()
    ids = token_ids()
    before = logits(model, ids, decoder_input_ids=ids[:, :5])
    from_hf(model)
    after = logits(model, ids, decoder_input_ids=ids[:, :5])
    assert set(hosted(model)) == {"encoder.block.1.layer.1.mlp", "decoder.block.1.layer.2.mlp"}
    assert (after - before).abs().max() <= 1e-4
    with gatelab.record(model.train()) as tape:
        model(input_ids=ids, decoder_input_ids=ids[:, :5])
    assert any(bool(routing.dropped.any()) for _, routing in tape.entries)
    assert not torch.equal(
        model(input_ids=ids, decoder_input_ids=ids[:, :5]).logits,
        model(input_ids=ids, decoder_input_ids=ids[:, :5]).logits,
    )


@pytest.mark.parametrize("training", [True, False])
def test_modes_dtypes_and_ties_stay(training):
    model = tiny_model("mixtral").to(torch.bfloat16).train(training)
    model.model.layers[0].mlp.eval()  # frozen by hand
    from_hf(model)
    modes = {name: moe.training for name, moe in hosted(model).items()}
    assert modes == {"model.layers.0.mlp": False, "model.layers.1.mlp": training}
    assert model.training is training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert logits(model, token_ids()).dtype == torch.bfloat16


def test_gradients_reach_the_same_places_also_with_checkpointing():
    ids = token_ids()
    plain, model = tiny_model("qwen2_moe"), tiny_model("qwen2_moe")
    from_hf(model)
    for m in (plain, model):
        m.train()
        m.activation_checkpointing_enable()
    with gatelab.record(model) as tape:
        model(input_ids=ids, labels=ids).loss.backward()
    assert len(tape.entries) == 2
    plain(input_ids=ids, labels=ids).loss.backward()
    for old, new in (
        (plain.model.embed_tokens.weight, model.model.embed_tokens.weight),
        (plain.model.layers[0].mlp.gate.weight, model.model.layers[0].mlp.moe.router.score.weight),
        (plain.model.layers[1].mlp.experts.gate_up_proj, model.model.layers[1].mlp.moe.experts.gate_up_proj),
    ):
        assert torch.allclose(old.grad, new.grad, rtol=1e-3, atol=1e-4 * float(old.grad.abs().max()))


def test_a_decoder_layer_is_converted_in_place():
    model = tiny_model("qwen2_moe")
    layer = model.model.layers[1]
    before = logits(model, token_ids())
    assert from_hf(layer) is layer
    assert set(hosted(model)) == {"model.layers.1.mlp"}
    assert (logits(model, token_ids()) - before).abs().max() <= 1e-4


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "gemma4_text"])
def test_a_converted_model_is_saved_under_our_names_and_comes_back_bit_for_bit(kind, tmp_path):
    ids, original = token_ids(), tiny_model(kind, seed=3)
    original.save_pretrained(tmp_path / "theirs")
    model = from_hf(tiny_model(kind))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    model.save_pretrained(tmp_path / "ours")
    again = from_hf(type(model).from_pretrained(tmp_path / "theirs"))
    saved = load_file(tmp_path / "ours" / "model.safetensors")
    missing, unexpected = again.load_state_dict(saved, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}  # tied, and then saved once
    assert torch.equal(logits(again.eval(), ids), logits(model, ids))


@pytest.mark.parametrize("kind", ["mixtral", "deepseek_v3", "gemma4_text", "zaya"])
def test_trained_weights_go_back_into_a_model_of_transformers_and_are_saved_as_ever(kind, tmp_path):
    ids, model = token_ids(), from_hf(tiny_model(kind))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("balance.0.bias"):
                buffer.add_(0.02 * torch.randn(buffer.shape, generator=generator))
    plain = type(model)(model.config).eval()  # fresh numbers, as AutoModelForCausalLM.from_config makes them
    assert to_hf(model, plain) is plain
    plain.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert (logits(loaded, ids) - logits(model, ids)).abs().max() <= 1e-4


def test_to_hf_of_an_unchanged_model_changes_no_bit():
    original = tiny_model("deepseek_v3")
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    to_hf(from_hf(tiny_model("deepseek_v3")), original)
    assert all(torch.equal(before[name], tensor) for name, tensor in original.state_dict().items())


def test_models_that_do_not_fit_are_refused():
    model = from_hf(tiny_model("qwen2_moe"))
    with pytest.raises(UnsupportedBlock, match="has no MoE block to convert: its 2 are converted already"):
        from_hf(model)
    with pytest.raises(ValueError, match="moe was not converted; pass the result of from_hf and a model of the same"):
        to_hf(tiny_model("qwen2_moe"), tiny_model("qwen2_moe"))
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp of the converted model is no block in the other"):
        to_hf(model, tiny_model("qwen2_moe", mlp_only_layers=[1]))
    with pytest.raises(ValueError, match=r"experts\.down_proj is \(8, 32, 12\) in moe, \(8, 32, 24\) in model"):
        to_hf(from_hf(tiny_model("mixtral", intermediate_size=12)), tiny_model("mixtral"))


def test_a_model_is_converted_whole_or_not_at_all():
    model = tiny_model("mixtral")
    layer = model.model.layers[1].mlp.experts
    forward = layer.forward
    layer.forward = lambda *args: forward(*args).tanh()
    with pytest.raises(UnsupportedBlock, match=r"^model\.layers\.1\.mlp: MixtralSparseMoeBlock cannot be converted: "):
        from_hf(model)
    assert not hosted(model)
    dense = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(UnsupportedBlock, match="Sequential has no MoE block to convert: it holds no experts"):
        from_hf(dense)


def test_what_is_no_layer_by_itself_is_passed_by_in_a_model():
    pair = tiny_block("ernie4_5_vl_moe", "Ernie4_5_VLMoeMoeBlock")
    with pytest.raises(UnsupportedBlock, match=r"convert \.text_moe and \.vision_moe"):
        from_hf(pair)
    assert isinstance(from_hf(pair.text_moe), MoE)
    assert set(hosted(from_hf(nn.ModuleList([pair])))) == {"0.text_moe", "0.vision_moe"}
    # JetMoE's attention has experts of its own; they stay as they are.
    assert set(hosted(from_hf(tiny_model("jetmoe")))) == {"model.layers.0.mlp", "model.layers.1.mlp"}
