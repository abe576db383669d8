"""`trace.run`: every figure against the checkpoint's own blocks in transformers; the recording against `replay`."""

import itertools
import json
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import scipy.stats
import torch
from torch.nn import functional as F
from trace_checkpoints import save_checkpoint, write_texts
from transformers import AutoModelForCausalLM, AutoTokenizer

import gatelab
from gatelab.bench import trace
from gatelab.zoo import from_hf
from gatelab.zoo.hf.host import hosted

TOKENS, LENGTH, RECORD = 150, 40, 70
E, K = {"mixtral": 6, "qwen2_moe": 8, "deepseek_v3": 8}, {"mixtral": 2, "qwen2_moe": 3, "deepseek_v3": 3}
MODELS = list(E)


class Own:
    """What transformers' own blocks do with the same tokens, read in the plainest way: rows of (text, window, id)."""

    def __init__(self, folder, texts):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.rows, self.ids, self.logits = [], defaultdict(list), defaultdict(list)
        for name, module in model.named_modules():
            if hasattr(module, "experts") and hasattr(module, "gate"):
                module.experts.register_forward_pre_hook(self._note_ids(name), with_kwargs=True)
                module.register_forward_pre_hook(self._note_logits(name, module))
        for number, text in enumerate(texts):
            tokens = tokenizer(text.read_text(encoding="utf-8"), add_special_tokens=False).input_ids[:TOKENS]
            for window in range(0, len(tokens), LENGTH):
                part = tokens[window : window + LENGTH]
                self.rows += [(number, window, token) for token in part]
                with torch.no_grad():
                    model(torch.tensor([part]))
        self.ids = {name: torch.cat(found).tolist() for name, found in self.ids.items()}
        self.logits = {name: torch.cat(found).double().numpy() for name, found in self.logits.items()}

    def _note_ids(self, name):
        def hook(_, args, kwargs):
            given = [*args, *kwargs.values()]
            self.ids[name].append(next(t for t in given if t.dtype == torch.int64))

        return hook

    def _note_logits(self, name, module):
        def hook(_, args):
            self.logits[name].append(F.linear(args[0].flatten(0, 1).float(), module.gate.weight.float()))

        return hook


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module", params=MODELS)
def traced(request, tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp(request.param)
    # qwen2_moe in a dozen shards
    save_checkpoint(folder / "model", request.param, max_shard_size="20KB" if request.param == "qwen2_moe" else "5GB")
    results = trace.run(
        folder / "model", texts, folder / "out", tokens=TOKENS, sequence_length=LENGTH, record=RECORD, devices=2
    )
    return request.param, results, Own(folder / "model", texts), folder


def test_it_is_what_stands_in_the_file(traced):
    name, results, own, folder = traced
    assert json.loads((folder / "out/trace.json").read_text()) == results
    assert (folder / "out/trace.html").exists()
    # DeepSeek's first layer is dense.
    wanted = ["model.layers.1.mlp"] if name == "deepseek_v3" else ["model.layers.0.mlp", "model.layers.1.mlp"]
    assert [layer["name"] for layer in results["layers"]] == wanted == list(own.ids)
    assert (len(list((folder / "model").glob("*.safetensors"))) > 5) == (name == "qwen2_moe")
    assert [text["tokens"] for text in results["texts"]] == [TOKENS, TOKENS]


def test_load_figures_are_those_of_the_blocks_own_choices(traced):
    name, results, own, _ = traced
    for layer in results["layers"]:
        chosen = own.ids[layer["name"]]
        load = np.array([sum(e in ids for ids in chosen) for e in range(E[name])])
        mean = load.mean()
        assert layer["tokens_per_expert"] == load.tolist()
        by_text = [
            [sum(e in ids for row, ids in zip(own.rows, chosen, strict=True) if row[0] == text) for e in range(E[name])]
            for text in (0, 1)
        ]
        assert layer["tokens_per_expert_by_text"] == by_text
        assert layer["max_violation_global"] == pytest.approx(load.max() / mean - 1)
        assert layer["coefficient_of_variation"] == pytest.approx(load.std() / mean)
        assert layer["effective_experts"] == pytest.approx(math.exp(scipy.stats.entropy(load)))
        assert layer["dead_experts"] == (load == 0).sum()
        falling = np.sort(load)[::-1].cumsum() / load.sum()
        assert layer["coverage"] == pytest.approx(falling.tolist())
        assert layer["experts_covering"]["0.9"] == int(np.argmax(falling >= 0.9 - 1e-9)) + 1
        halves = load.reshape(2, -1).sum(1)
        assert layer["straggler_factor_global"] == pytest.approx(halves.max() / halves.mean())
        windows = defaultdict(lambda: np.zeros(E[name]))
        for (text, window, _), ids in zip(own.rows, chosen, strict=True):
            windows[text, window][ids] += 1
        assert len(windows) == 8  # 150 tokens are windows of 40, 40, 40 and 30
        violations = [n.max() / n.mean() - 1 for n in windows.values()]
        tokens = [40, 40, 40, 30] * 2
        assert layer["max_violation"] == pytest.approx(np.average(violations, weights=tokens))
        # the time of all windows, each as long as its fullest half, over what even loads would take
        fullest = sum(n.reshape(2, -1).sum(1).max() for n in windows.values())
        assert layer["straggler_factor"] == pytest.approx(fullest / (load.sum() / 2))
        assert layer["experts_per_token"] == {"min": K[name], "mean": K[name], "max": K[name]}
        assert layer["drop_rate"] == 0


def test_gate_figures_are_those_of_the_blocks_own_logits(traced):
    name, results, own, _ = traced
    for layer in results["layers"]:
        logits = own.logits[layer["name"]]
        scores = 1 / (1 + np.exp(-logits)) if name == "deepseek_v3" else np.exp(logits)
        p = scores / scores.sum(1, keepdims=True)
        entropy = scipy.stats.entropy(p, axis=1).mean()
        assert layer["gate_entropy"] == pytest.approx(entropy, rel=1e-4)
        assert layer["gate_entropy_share"] == pytest.approx(entropy / math.log(E[name]), rel=1e-4)
        first, second = np.sort(p, axis=1)[:, -1], np.sort(p, axis=1)[:, -2]
        assert layer["top1_margin"] == pytest.approx((first - second).mean(), rel=1e-3)


def test_co_activation_is_counted_over_all_pairs(traced):
    name, results, own, folder = traced
    counts = np.load(folder / "out/counts.npz")
    for layer in results["layers"]:
        pairs = Counter(p for ids in own.ids[layer["name"]] for p in itertools.permutations(ids, 2))
        load = layer["tokens_per_expert"]
        together = counts[f"{layer['name']}/co_activation"]
        assert all(together[i, j] == pairs[i, j] for i in range(E[name]) for j in range(E[name]) if i != j)
        assert together.diagonal().tolist() == load
        rate = {(i, j): n / load[i] for (i, j), n in pairs.items() if load[i] >= 10 and load[j] >= 10}
        assert layer["pairs"][0]["rate"] == pytest.approx(max(rate.values()))
        for pair in layer["pairs"]:
            i, j = pair["expert"], pair["with"]
            assert pair["rate"] == pytest.approx(rate[i, j])
            assert pair["lift"] == pytest.approx(pairs[i, j] * len(own.rows) / (load[i] * load[j]))
        closest = [max(pairs[i, j] for j in range(E[name])) / n for i, n in enumerate(load) if n >= 10]
        assert layer["co_activation"] == pytest.approx(np.mean(closest))
        assert layer["co_activation_by_chance"] == pytest.approx((K[name] - 1) / (E[name] - 1))


def test_specialisation_is_that_of_the_token_ids_and_texts(traced):
    name, results, own, _ = traced
    seen = Counter(token for *_, token in own.rows)
    frequent = [token for token, n in seen.items() if n >= 10]
    assert set(results["vocabulary"]["ids"]) == set(frequent)
    assert results["vocabulary"]["share"] == pytest.approx(sum(seen[token] for token in frequent) / len(own.rows))
    for layer in results["layers"]:
        chosen = own.ids[layer["name"]]
        uses = Counter((row[2], e) for row, ids in zip(own.rows, chosen, strict=True) for e in ids)
        first = Counter((row[2], ids[0]) for row, ids in zip(own.rows, chosen, strict=True))
        favourite = [max(uses[token, e] for e in range(E[name])) / seen[token] for token in frequent]
        assert layer["vocabulary_specialization"] == pytest.approx(np.mean(favourite))
        if name != "deepseek_v3":  # whose own ids are not in the order of their weights
            favourite = [max(first[token, e] for e in range(E[name])) / seen[token] for token in frequent]
            assert layer["vocabulary_specialization_first"] == pytest.approx(np.mean(favourite))
        table = np.array([[uses[token, e] for e in range(E[name])] for token in frequent])
        assert layer["token_information"] == pytest.approx(information(table))
        assert layer["domain_information"] == pytest.approx(information(np.array(layer["tokens_per_expert_by_text"])))
        shares = np.array(layer["tokens_per_expert_by_text"]) / TOKENS
        assert np.allclose(layer["domain_specialization"], shares)
        shown = dict(zip(results["vocabulary"]["tokens"], results["vocabulary"]["ids"], strict=True))
        for e, expert in enumerate(layer["experts"]):
            for entry in expert["tokens"]:
                token = shown[entry["token"]]
                assert entry["count"] == seen[token]
                assert entry["share"] == pytest.approx(uses[token, e] / seen[token])
            best = max((uses[token, e] / seen[token] for token in frequent), default=0)
            assert [entry["share"] for entry in expert["tokens"]][:1] == pytest.approx([best][: best > 0])


def information(table):
    """Σ p ln(p/(p_x p_i)), as 2ΣN times the G statistic of independence."""
    table = table[:, table.sum(0) > 0]
    return scipy.stats.chi2_contingency(table, correction=False, lambda_="log-likelihood").statistic / (2 * table.sum())


def test_the_recording_replays_the_same_experts_and_logits(traced):
    name, results, own, folder = traced
    index = json.loads((folder / "out/routing/index.json").read_text())
    # 70 tokens of each text are reached in its second window of 40
    assert [(window["text"], window["start"]) for window in index["windows"]] == [
        ("code.txt", 0),
        ("code.txt", 40),
        ("prose.txt", 0),
        ("prose.txt", 40),
    ]
    assert results["recording"]["windows"] == 4
    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    for window in index["windows"]:
        ids = torch.tensor([window["input_ids"]])
        with torch.no_grad():
            wanted = AutoModelForCausalLM.from_pretrained(folder / "model").eval()(ids).logits
        layers = hosted(from_hf(model) if not hosted(model) else model)
        assert layers.keys() == window["files"].keys()
        for layer, moe in layers.items():
            path = folder / "out/routing" / window["files"][layer]
            moe.router = gatelab.create_router("replay", 32, E[name], routing=path)
            begin = [row[:2] for row in own.rows].index(
                (("code.txt", "prose.txt").index(window["text"]), window["start"])
            )
            theirs = own.ids[layer][begin : begin + ids.numel()]
            recorded = gatelab.Routing.load(path).topk()[1]
            assert recorded.sort(1).values.tolist() == [sorted(row) for row in theirs]
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits, wanted, rtol=1e-4, atol=1e-5)
