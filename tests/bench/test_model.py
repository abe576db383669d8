"""Fair by construction: the same start, the same FLOPs, the same batches."""

import pytest
import torch
from tiny import tiny, write_text

import gatelab
from gatelab.bench.config import DEFAULT_ROUTERS
from gatelab.bench.describe import describe
from gatelab.bench.evaluate import bits_per_byte, causal_fallback
from gatelab.bench.matching import match
from gatelab.bench.model import ByteTransformer
from gatelab.bench.workloads import load_text
from gatelab.routers.select import TopK


def model_of(name, seed=0, **changes):
    config = tiny(name, **changes)
    return ByteTransformer(config, name, match(config, name).intermediate_size, seed)


@pytest.mark.parametrize("attention", ["plain", "lfa"])
def test_what_gates_share_starts_out_the_same_whatever_the_gate(attention):
    states = {name: model_of(name, attention=attention).state_dict() for name in DEFAULT_ROUTERS}
    reference = states["random"]
    for state in states.values():
        for key in reference:
            if ".experts." not in key:
                assert torch.equal(state[key], reference[key]), key
    # gates with the same score start with the same score
    for name in ("expert-choice", "balanced-assignment"):
        key = "layers.1.moe.router.score.weight"
        assert torch.equal(states[name][key], states["topk-softmax"][key])
    assert not torch.equal(reference["embedding.weight"], model_of("random", seed=1).state_dict()["embedding.weight"])
    assert not torch.equal(reference["layers.0.moe.experts.down_proj"], reference["layers.1.moe.experts.down_proj"])


def test_experts_of_two_widths_are_identical_where_they_overlap():
    wide, narrow = (model_of(name).layers[0].moe.experts for name in ("random", "attention-lfa"))
    I, J = narrow.intermediate_size, wide.intermediate_size
    assert I < J
    assert torch.equal(narrow.down_proj, wide.down_proj[:, :, :I])
    gate, up = wide.gate_up_proj[:, :I], wide.gate_up_proj[:, J : J + I]
    assert torch.equal(narrow.gate_up_proj, torch.cat([gate, up], dim=1))


def test_gate_and_experts_have_the_same_active_flops_within_one_unit_of_width():
    config = tiny(*DEFAULT_ROUTERS, intermediate_size=64)
    # 2 layers · K · I · three matrices of D = 16, 2 FLOPs per multiply-add
    budget = 2 * 2 * 64 * 3 * 16 * 2
    for name in DEFAULT_ROUTERS:
        matched = match(config, name)
        flops = describe(config, name, matched)["flops_per_token"]
        half_a_unit = 2 * matched.mean_experts * 3 * 16 * 2 / 2
        assert abs(flops["router"] + flops["experts"] - budget) <= half_a_unit, name
    # its experts together are one plain MLP: E · I = K · 64
    assert match(config, "dense").intermediate_size * 4 == 2 * 64


def test_zero_computation_experts_leave_their_flops_to_the_others():
    matched = match(tiny("moe-plus-plus", intermediate_size=256), "moe-plus-plus")
    assert matched.mean_experts < 2


def test_batches_are_the_same_for_every_gate_and_another_for_every_step_and_seed(tmp_path):
    text = load_text(write_text(tmp_path / "text.txt"), 16)
    assert torch.equal(text.batch(0, 5, 4, 16), text.batch(0, 5, 4, 16))
    assert not torch.equal(text.batch(0, 5, 4, 16), text.batch(0, 6, 4, 16))
    assert not torch.equal(text.batch(0, 5, 4, 16), text.batch(1, 5, 4, 16))
    assert text.batch(0, 5, 4, 16).shape == (4, 17)


def test_text_is_split_by_file_or_at_the_end(tmp_path):
    single = tmp_path / "a.txt"
    single.write_bytes(bytes(range(1, 101)) * 2)
    text = load_text(single, 8)
    assert (len(text.train), len(text.validation)) == (180, 20)
    # 19 bytes to predict make two windows of 8 (and their next byte); they cover both ends
    assert text.held_out(9, 8).tolist() == [list(range(81, 90)), list(range(92, 101))]
    folder = tmp_path / "folder"
    folder.mkdir()
    for i in range(40):
        (folder / f"{i}.txt").write_bytes(bytes([i + 1]) * 50)
    (folder / "binary").write_bytes(b"\0" * 50)
    (folder / ".hidden").write_bytes(b"x" * 50)
    text = load_text(folder, 8)
    train, held_out = set(text.train.tolist()), set(text.validation.tolist())
    assert len(held_out) == 5  # one in ten of 41 files (the binary falls to the other side), rounded up
    assert not train & held_out
    assert train | held_out == set(range(1, 41))


def test_the_standard_library_is_the_default_text():
    text = load_text(None, 128)
    assert len(text.train) > 5_000_000
    assert len(text.validation) > 300_000


def test_bits_per_byte_of_a_model_that_knows_nothing_is_eight():
    model = torch.nn.Embedding(256, 256)
    torch.nn.init.zeros_(model.weight)
    assert bits_per_byte(model, torch.randint(256, (3, 9)), "cpu") == pytest.approx(8)


def test_causal_fallback_selects_by_the_scores_that_were_learned_and_goes_away():
    model = model_of("expert-choice").eval()
    ids = torch.randint(256, (2, 16))
    later = ids.clone()
    later[:, -1] = (later[:, -1] + 1) % 256
    gate = model.layers[0].moe.router
    with torch.no_grad():
        before = model(ids)
        with causal_fallback(model, top_k=2):
            assert gate.guarantees.causal
            assert isinstance(gate.select, TopK)
            # Not to the bit: experts multiply other rows beside these, in blocks of other sizes.
            torch.testing.assert_close(model(ids)[:, :-1], model(later)[:, :-1])
            routing = gate(torch.randn(1, 6, 16))
            best = routing.probabilities.topk(2).values
            assert torch.equal(routing.topk()[0].sort(descending=True).values, best)
        assert torch.equal(model(ids), before)
    assert not gate.guarantees.causal


def test_a_leaky_gate_with_an_experts_per_token_of_its_own_keeps_it():
    gate = gatelab.create_router("switch", 16, 4).eval()
    with causal_fallback(torch.nn.Sequential(gate), top_k=2):
        assert gate.guarantees.experts_per_token == 1
