"""What a trace refuses, each in one line that names it; and the files it reads text from."""

import json
import shutil
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from trace_checkpoints import CODE, PROSE, save_checkpoint, save_tokenizer, write_texts
from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

from gatelab.bench import cli, trace
from gatelab.bench.errors import BadInput
from gatelab.bench.trace import text as text_module
from gatelab.bench.trace.config import TraceConfig
from gatelab.bench.trace.text import Reader, pieces

SMALL = {"tokens": 100, "sequence_length": 32, "record": 0}
PROJECTION = "model.layers.0.self_attn.q_proj.weight"
EXPERT = "model.layers.0.block_sparse_moe.experts.1.w1.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "mixtral", "mixtral")


@pytest.fixture
def model(checkpoint, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(checkpoint, tmp_path / "model")


@pytest.fixture
def texts(tmp_path):
    return write_texts(tmp_path)


def edit_config(model, **changes):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **changes}))


def edit_weights(model, change):
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def pickle_weights(model):
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


BROKEN = {
    "no config": (lambda m: (m / "config.json").unlink(), "has no config.json"),
    "no JSON": (lambda m: cut(m / "config.json"), "config.json is truncated or not JSON"),
    "no tokenizer": (lambda m: [path.unlink() for path in m.glob("tokenizer*")], "has no tokenizer"),
    "half a tokenizer": (lambda m: (m / "tokenizer.json").unlink(), "its tokenizer does not load: ValueError"),
    "broken tokenizer": (lambda m: cut(m / "tokenizer.json"), "its tokenizer does not load"),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), "has no weights"),
    "truncated": (lambda m: cut(m / "model.safetensors"), "model.safetensors is truncated"),
    "pickled": (pickle_weights, "only as pickle .pytorch_model.bin.*pass --allow-pickle"),
    "adapter": (lambda m: (m / "adapter_config.json").write_text("{}"), "is an adapter"),
    "renamed weights": (lambda m: edit_config(m, transformers_weights="adapter_model.bin"), "renames its weights"),
    "lost tensor": (lambda m: edit_weights(m, lambda t: t.pop(PROJECTION)), f"lacks weights of {PROJECTION}"),
    "lost expert": (lambda m: edit_weights(m, lambda t: t.pop(EXPERT)), "do not fit together in model.layers.0.mlp"),
    "other shape": (
        lambda m: edit_weights(m, lambda t: t.update({PROJECTION: torch.zeros(3, 5)})),
        f"another shape than its config.json says in {PROJECTION}",
    ),
    "left over": (lambda m: edit_weights(m, lambda t: t.update(spare=torch.zeros(3))), "no place for: spare"),
    "layers left over": (lambda m: edit_config(m, num_hidden_layers=1), r"no place for: model.layers.1.* and 8 more"),
    "unknown model": (
        lambda m: edit_config(m, model_type="unheard-of", architectures=["Unheard"]),
        "its configuration does not load: ValueError: .*unheard-of",
    ),
    "NaN": (
        lambda m: edit_weights(m, lambda t: t[PROJECTION].fill_(torch.nan)),
        "fails on code.txt: ValueError: .*NaN",
    ),
    "few positions": (lambda m: edit_config(m, max_position_embeddings=16), "--sequence-length 32 .* 16 positions"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_checkpoint_that_is_not_whole_is_refused(name, model, texts, tmp_path):
    break_it, says = BROKEN[name]
    break_it(model)
    with pytest.raises(BadInput, match=says) as refused:
        trace.run(model, texts, tmp_path / "out", **SMALL)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out/trace.json").exists()


def test_a_missing_shard_is_named(texts, tmp_path):
    model = save_checkpoint(tmp_path / "sharded", "qwen2_moe", max_shard_size="20KB")
    shards = sorted(model.glob("*.safetensors"))
    index = json.loads((model / "model.safetensors.index.json").read_text())
    shards[3].rename(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match=f"lacks {shards[3].name}, of {len(shards)} shards"):
        trace.run(model, texts, tmp_path / "out", **SMALL)
    # A shard of another model has the right name and not what the index promises.
    shutil.copy(shards[0], shards[3])
    lost = sorted(name for name, shard in index["weight_map"].items() if shard == shards[3].name)[0]
    with pytest.raises(BadInput, match=f"{shards[3].name} lacks {lost}"):
        trace.run(model, texts, tmp_path / "out", **SMALL)


def test_a_model_without_experts_is_refused(texts, tmp_path):
    model = save_checkpoint(tmp_path / "dense", "llama")
    with pytest.raises(BadInput, match="a LlamaForCausalLM, which has no Mixture-of-Experts layer"):
        trace.run(model, texts, tmp_path / "out", **SMALL)


def test_pickle_is_read_when_it_is_allowed(model, checkpoint, texts, tmp_path):
    pickle_weights(model)
    results = trace.run(model, texts, tmp_path / "out", allow_pickle=True, **SMALL)
    assert results["layers"] == trace.run(checkpoint, texts, tmp_path / "safe", **SMALL)["layers"]


def test_code_in_the_folder_runs_only_when_it_is_trusted(model, texts, tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    (model / "configuration_own.py").write_text(
        f"from pathlib import Path\nPath({str(ran)!r}).touch()\n"
        "from transformers import MixtralConfig\n\n\nclass OwnConfig(MixtralConfig):\n    model_type = 'own'\n"
    )
    (model / "modeling_own.py").write_text(
        "from transformers import MixtralForCausalLM\nfrom .configuration_own import OwnConfig\n\n\n"
        "class OwnForCausalLM(MixtralForCausalLM):\n    config_class = OwnConfig\n"
    )
    names = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    edit_config(model, model_type="own", architectures=["OwnForCausalLM"], auto_map=names)
    # transformers renames Mixtral's weights by model type, so this one's are saved under the names of its own class
    own = MixtralForCausalLM(MixtralConfig(**json.loads((model / "config.json").read_text())))
    save_file({k: v.contiguous() for k, v in own.state_dict().items()}, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=r"needs Python code that lies in it.*--trust-remote-code"):
        trace.run(model, texts, tmp_path / "out", **SMALL)
    assert not ran.exists()
    results = trace.run(model, texts, tmp_path / "out", trust_remote_code=True, **SMALL)
    assert ran.exists()
    assert results["model"]["class"] == "OwnForCausalLM"
    assert len(results["layers"]) == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "holds no text; a trace needs at least 16 tokens"),
        (b"ab", "has 2 tokens; a trace needs at least 16 tokens"),
        (
            CODE.encode() + b"\xff" + CODE.encode(),
            rf"is not UTF-8 \(invalid start byte at byte {len(CODE)}\); convert it",
        ),
        (PROSE.encode("utf-16"), "is not UTF-8"),
        ("Ω".encode()[:1], "is not UTF-8 .unexpected end of data at byte 0"),
    ],
)
def test_a_text_that_cannot_be_read_is_named(content, says, checkpoint, tmp_path):
    path = tmp_path / "given.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=f"--text .*given.txt {says}"):
        trace.run(checkpoint, [path], tmp_path / "out", **SMALL)


def test_a_text_of_unknown_words_is_refused_and_one_with_a_few_is_marked(model, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "gate": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(model)
    path = tmp_path / "given.txt"
    path.write_text("a strange tongue " * 10)
    with pytest.raises(BadInput, match="the tokenizer does not know 67% of its tokens"):
        trace.run(model, [path], tmp_path / "out", **SMALL)
    path.write_text("a gate " * 20 + "tongue")
    results = trace.run(model, [path], tmp_path / "out", **SMALL)
    assert results["texts"] == [{"name": "given.txt", "tokens": 41, "unknown": 1}]
    assert "does not know 2.44 % of the tokens of given.txt" in (tmp_path / "out/trace.html").read_text()


def test_a_tokenizer_of_another_model_is_refused(model, texts, tmp_path):
    embedding = "model.embed_tokens.weight"
    edit_weights(model, lambda t: t.update({k: t[k][:20].clone() for k in (embedding, "lm_head.weight")}))
    edit_config(model, vocab_size=20)
    with pytest.raises(BadInput, match=r"its tokenizer gives token id .*, its model knows 20"):
        trace.run(model, texts, tmp_path / "out", **SMALL)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere", "--text", "code.txt"], "MODEL_DIR nowhere does not exist; name a local folder"),
        (["code.txt", "--text", "code.txt"], "MODEL_DIR code.txt is a file; name a local folder"),
        (["model"], "--text is missing; name at least one text file"),
        (["model", "--text", "code.txt", "--text", "./code.txt"], "--text names code.txt twice"),
        (["model", "--text", "code.txt", "--tokens", "0"], "--tokens 0 must be at least 1"),
        (["model", "--text", "code.txt", "--sequence-length", "1"], "--sequence-length 1 must be at least 2"),
        (["model", "--text", "code.txt", "--record", "-1"], "--record -1 must be at least 0"),
        (["model", "--text", "code.txt", "--devices", "4"], "--devices 4 must divide the 6 experts of a layer"),
        (["model", "--text", "code.txt", "--dtype", "int8"], "--dtype int8 is unknown; choose one of auto, float32"),
        (["model", "--text", "code.txt", "--device", "tpu"], "--device tpu is unknown; choose cpu"),
        (["model", "--text", "code.txt", "--out", "code.txt"], "--out code.txt cannot be written: File exists"),
        (["model", "--text", "code.txt", "--out", "compared"], "--out compared holds a `gatelab compare`"),
        (["model", "--text", "code.txt", "--out", "taken"], "taken/routing/index.json cannot be read"),
        ([], "Missing argument 'MODEL_DIR'."),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(arguments, says, model, texts, tmp_path, monkeypatch, capsys):
    (tmp_path / "compared").mkdir()
    (tmp_path / "compared/run.json").touch()
    (tmp_path / "taken/routing").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gatelab", "trace", *arguments[:1], "--sequence-length", "32", *arguments[1:]])
    with pytest.raises(SystemExit) as ended:
        cli.run()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.rstrip("\n").rsplit("\n", 1)[-1].startswith(f"gatelab: {says}")


def test_the_command_prints_the_page_or_the_whole_document(model, texts, tmp_path, monkeypatch, capsys):
    given = ["gatelab", "trace", str(model), *(part for text in texts for part in ("--text", str(text)))]
    given += ["--out", str(tmp_path / "out"), "--tokens", "100", "--sequence-length", "32", "--record", "0"]
    for as_json in (False, True):
        monkeypatch.setattr(sys, "argv", [*given, "--json"] if as_json else given)
        with pytest.raises(SystemExit) as ended:
            cli.run()
        out, err = capsys.readouterr()
        assert ended.value.code == 0
        assert "routing prose.txt" in err
        if as_json:
            assert json.loads(out) == json.loads((tmp_path / "out/trace.json").read_text())
        else:
            assert out == f"{tmp_path / 'out/trace.html'}\n"


def test_without_transformers_it_says_how_to_get_it(model, texts, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BadInput, match=r"needs transformers, which is not installed; pip install 'gatelab\[hf\]'"):
        trace.run(model, texts, tmp_path / "out", **SMALL)


@settings(deadline=None, max_examples=50)
@given(
    parts=st.lists(st.sampled_from([CODE, PROSE, "Ω" * 50, "x" * 80, "\r\n", " "]), min_size=1, max_size=8),
    piece=st.integers(1, 64),
)
def test_pieces_are_the_file_and_none_is_long(tmp_path_factory, parts, piece):
    path, whole = tmp_path_factory.mktemp("pieces") / "given.txt", "".join(parts)
    path.write_bytes(whole.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "PIECE", piece)
        found = list(pieces(path))
    assert "".join(found) == whole
    # at most what one more read adds to a line that is already too long to wait for its end
    assert max(map(len, found)) <= 2 * piece + 1


def test_windows_are_the_tokens_up_to_the_limit(checkpoint, texts, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    whole = [tokenizer(text.read_text(encoding="utf-8")).input_ids for text in texts]
    for limit in (32, 100, 10_000):
        reader = Reader(tokenizer, TraceConfig(tokens=limit, sequence_length=32))
        for path, ids in zip(texts, whole, strict=True):
            windows = list(reader.windows(path))
            assert [id for window in windows for id in window] == ids[:limit]
            assert {len(window) for window in windows[:-1]} <= {32}
            found, counts = reader.look_through(path, path.name, lambda done: None)
            assert found.num_tokens == len(ids[:limit]) == int(counts.sum())
            assert counts[ids[0]] == ids[:limit].count(ids[0])


def test_what_a_tokenizer_puts_before_a_text_begins_every_window_and_is_not_counted(model, texts, tmp_path):
    save_tokenizer(model, bos=True)
    bos = AutoTokenizer.from_pretrained(model).bos_token_id
    results = trace.run(model, texts[:1], tmp_path / "out", tokens=62, sequence_length=32, record=100)
    windows = json.loads((tmp_path / "out/routing/index.json").read_text())["windows"]
    # 62 tokens in windows of 31 behind the BOS
    assert [window["input_ids"][0] for window in windows] == [bos, bos]
    assert [len(window["input_ids"]) for window in windows] == [32, 32]
    assert results["prefix"] == [bos]
    for layer in results["layers"]:
        assert layer["tokens"] == 62
        assert sum(layer["tokens_per_expert"]) == 2 * 62
