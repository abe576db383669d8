"""A trace as a whole: bounded memory, blocks that do not convert, several runs in one directory, its documentation."""

import gc
import json
import re
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from trace_checkpoints import save_checkpoint, write_texts

from gatelab import Routing
from gatelab.bench import trace
from gatelab.bench.errors import BadInput
from gatelab.bench.trace import convert as convert_module
from gatelab.bench.trace import vocabulary
from gatelab.bench.trace.layer import LayerCounts
from gatelab.bench.trace.trace import default_devices
from gatelab.zoo import UnsupportedBlock

DOCS = Path(__file__).parents[2] / "docs/trace.md"
SMALL = {"tokens": 100, "sequence_length": 32, "record": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "mixtral", "mixtral")


@pytest.fixture
def texts(tmp_path):
    return write_texts(tmp_path)


def size_of(counts):
    """Bytes of all that it holds; nothing but numbers and tensors may be there."""
    held = vars(counts).values()
    assert {type(value) for value in held} <= {torch.Tensor, int, float}
    return sum(value.untyped_storage().nbytes() for value in held if isinstance(value, torch.Tensor))


def test_counts_do_not_grow_with_tokens():
    counts = LayerCounts(6, 6, num_texts=1, num_ids=5, devices=2)
    sizes = []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        ids_TK = torch.rand(40, 6, generator=generator).topk(2).indices
        routing = Routing.from_topk(ids_TK, torch.ones(40, 2), 6)
        counts.add(routing, 0, torch.randint(-1, 5, (40,), generator=generator))
        sizes.append(size_of(counts))
    assert len(set(sizes)) == 1
    assert counts.windows == 20
    assert int(counts.tokens_X[0]) == 800


def test_one_window_of_routings_is_alive_at_a_time(model, texts, tmp_path):
    alive = []

    def count(phase, done, total):
        if phase.startswith("routing"):
            alive.append(sum(type(thing) is Routing for thing in gc.get_objects()))

    before = sum(type(thing) is Routing for thing in gc.get_objects())
    trace.run(model, texts, tmp_path / "out", on_progress=count, tokens=150, sequence_length=10, record=0)
    assert len(alive) == 30
    assert max(alive) - before <= 2  # two layers


def test_progress_ends_where_it_should(model, texts, tmp_path):
    last = {}
    trace.run(
        model,
        texts,
        tmp_path / "out",
        on_progress=lambda phase, done, total: last.update({phase: (done, total)}),
        **SMALL,
    )
    assert list(last) == [
        "reading code.txt",
        "reading prose.txt",
        "loading the model",
        "converting layers",
        "routing code.txt",
        "routing prose.txt",
    ]
    assert last["routing prose.txt"] == (200, 200)


def test_a_second_trace_says_the_same_and_replaces_the_recording_of_the_first(model, texts, tmp_path):
    options = {**SMALL, "record": 100}
    first = trace.run(model, texts, tmp_path / "out", **options)
    pages = [(tmp_path / "out" / name).read_bytes() for name in ("trace.json", "trace.html")]
    assert len(list((tmp_path / "out/routing").iterdir())) == 1 + 8
    assert trace.run(model, texts, tmp_path / "out", **options) == first
    assert [(tmp_path / "out" / name).read_bytes() for name in ("trace.json", "trace.html")] == pages
    less = trace.run(model, texts, tmp_path / "out", **{**options, "record": 32})
    # 32 tokens of each text are one window
    assert sorted(path.name for path in (tmp_path / "out/routing").iterdir()) == ["00000", "00001", "index.json"]
    assert less["layers"] == first["layers"]
    saved = (tmp_path / "out/routing").glob("*/*.npz")
    assert less["recording"]["bytes"] == sum(path.stat().st_size for path in saved)


def test_a_block_that_does_not_convert_is_left_out_and_named(model, texts, tmp_path, monkeypatch):
    convert, seen = convert_module.convert, []

    def refuse_the_first(block):
        seen.append(block)
        if len(seen) == 1:
            raise UnsupportedBlock("MixtralSparseMoeBlock cannot be converted: <it> hums")
        return convert(block)

    whole = trace.run(model, texts, tmp_path / "whole", **SMALL)
    monkeypatch.setattr(convert_module, "convert", refuse_the_first)
    results = trace.run(model, texts, tmp_path / "out", **SMALL)
    assert results["left_out"] == {"model.layers.0.mlp": "MixtralSparseMoeBlock cannot be converted: <it> hums"}
    # The other layer sees what it saw behind the converted one.
    assert [layer["tokens_per_expert"] for layer in results["layers"]] == [whole["layers"][1]["tokens_per_expert"]]
    page = (tmp_path / "out/trace.html").read_text()
    assert (
        "Not traced: model.layers.0.mlp, because: MixtralSparseMoeBlock cannot be converted: &lt;it&gt; hums." in page
    )
    assert "1 of 2 MoE layers traced" in page

    def refuse(block):
        raise UnsupportedBlock("it hums")

    monkeypatch.setattr(convert_module, "convert", refuse)
    with pytest.raises(BadInput, match=r"none of the MoE layers .* can be converted; model.layers.0.mlp: it hums"):
        trace.run(model, texts, tmp_path / "none", **SMALL)


def test_experts_that_compute_nothing_are_set_apart(texts, tmp_path):
    longcat = save_checkpoint(tmp_path / "longcat", "longcat_flash")
    results = trace.run(longcat, texts, tmp_path / "out", **SMALL)
    for layer in results["layers"]:
        assert (layer["num_experts"], layer["zero_computation_experts"]) == (6, 4)
        assert len(layer["tokens_per_expert"]) == 6
        # every token takes 3 of the 10; what is not with the six computes nothing
        assert layer["zero_computation_share"] == pytest.approx(1 - sum(layer["tokens_per_expert"]) / (3 * 200))
        assert 0 < layer["zero_computation_share"] < 1
        assert layer["experts_per_token"]["mean"] == 3
        assert layer["co_activation_by_chance"] == pytest.approx((sum(layer["tokens_per_expert"]) / 200 - 1) / 5)
    assert "compute nothing" in (tmp_path / "out/trace.html").read_text()


def test_of_an_encoder_decoder_the_encoder_is_traced(texts, tmp_path):
    from trace_checkpoints import SIZES, save_tokenizer
    from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 24, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2}
    sizes |= {"num_experts": 4, "expert_capacity": 5, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
    config = SwitchTransformersConfig(vocab_size=SIZES["vocab_size"], **sizes)
    SwitchTransformersForConditionalGeneration(config).save_pretrained(tmp_path / "switch")
    save_tokenizer(tmp_path / "switch")
    results = trace.run(tmp_path / "switch", texts, tmp_path / "out", **SMALL)
    (layer,) = results["layers"]
    assert layer["name"].startswith("encoder.")
    assert results["left_out"] == dict.fromkeys(results["left_out"], "no token reached it")
    assert all(name.startswith("decoder.") for name in results["left_out"])
    # 200 tokens, a window of 32 keeps at most 4 experts × 5: what is over is dropped
    assert layer["drop_rate"] == pytest.approx(1 - sum(layer["tokens_per_expert"]) / 200)
    assert layer["drop_rate"] > 0.3
    assert layer["experts_per_token"]["min"] == 0


def test_devices_are_the_largest_divisor_up_to_eight():
    found = {num_experts: default_devices(num_experts) for num_experts in (6, 7, 11, 20, 60, 64)}
    assert found == {6: 6, 7: 7, 11: 1, 20: 5, 60: 6, 64: 8}


def test_only_the_most_frequent_ids_are_counted(model, texts, tmp_path, monkeypatch):
    longer = {**SMALL, "tokens": 400}
    whole = trace.run(model, texts, tmp_path / "whole", **longer)
    monkeypatch.setattr(vocabulary, "MOST_IDS", 3)
    few = trace.run(model, texts, tmp_path / "few", **longer)
    assert len(whole["vocabulary"]["ids"]) > 3
    assert few["vocabulary"]["ids"] == whole["vocabulary"]["ids"][:3]
    counts = np.load(tmp_path / "few/counts.npz")
    tokens = counts["model.layers.0.mlp/tokens"].tolist()
    assert tokens == sorted(tokens, reverse=True)
    assert counts["model.layers.0.mlp/assignments"].shape == (3, 6)
    assert few["vocabulary"]["share"] == pytest.approx(sum(tokens) / sum(text["tokens"] for text in few["texts"]))


def test_blocks_are_let_go_as_they_are_converted(model, texts, tmp_path, monkeypatch):
    convert, blocks = convert_module.convert, []

    def count(block):
        gc.collect()
        blocks.append(weakref.ref(block))
        assert sum(seen() is not None for seen in blocks) == 1
        return convert(block)

    monkeypatch.setattr(convert_module, "convert", count)
    trace.run(model, texts, tmp_path / "out", **SMALL)
    assert len(blocks) == 2


def test_dtype_is_the_checkpoints_own_unless_given(model, texts, tmp_path):
    assert trace.run(model, texts, tmp_path / "out", **SMALL)["model"]["dtype"] == "float32"
    half = trace.run(model, texts, tmp_path / "out", dtype="bfloat16", **SMALL)
    assert half["model"]["dtype"] == "bfloat16"
    assert len(half["layers"]) == 2


def test_little_text_is_marked(model, tmp_path):
    path = tmp_path / "little.txt"
    path.write_text("one two three four five six seven eight")
    results = trace.run(model, [path], tmp_path / "out", **SMALL)
    page = (tmp_path / "out/trace.html").read_text()
    assert "Little text: an expert gets" in page
    assert results["vocabulary"]["ids"] == []
    assert "No token id is frequent enough" in page


def test_the_schema_is_documented(model, texts, tmp_path):
    results = trace.run(model, texts, tmp_path / "out", **{**SMALL, "record": 10})
    written = set(re.findall(r"`(\w+)`", DOCS.read_text(encoding="utf-8")))

    def keys(value, free=()):
        if isinstance(value, dict):
            for key, entry in value.items():
                if key not in free:
                    yield key
                yield from keys(entry) if key not in ("left_out", "experts_covering", "machine") else ()
        elif isinstance(value, list):
            for entry in value:
                yield from keys(entry)

    assert set(keys(results)) - written == set()
    index = json.loads((tmp_path / "out/routing/index.json").read_text())
    assert set(index) | set(index["windows"][0]) <= written
    arrays = {name.rpartition("/")[2] for name in np.load(tmp_path / "out/counts.npz")}
    assert arrays <= written


def test_the_documented_example_runs(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mixtral").symlink_to(model)
    write_texts(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    scope: dict[str, object] = {}
    for block in blocks:
        exec(block, scope)
    assert len(blocks) == 2
