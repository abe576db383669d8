"""The rows and text of `gatelab flops`, the look-up by name, and the page in the docs."""

import json
import re
import runpy
from pathlib import Path

import pytest

from gatelab.zoo import MODELS, UNDISCLOSED, Figure, Model, find, flops_rows, render_model, render_table
from gatelab.zoo.hardware import CARDS

DISCLOSED = [
    "Yuan2.0-M32",
    "Skywork-MoE (146B-A22B)",
    "Mixtral-8x7B",
    "Grok-1",
    "Qwen1.5-MoE-A2.7B",
    "DeepSeekMoE-16B",
    "DeepSeek-V2 / V2.5",
    "XVERSE-MoE-A4.2B",
    "XVERSE-MoE-A36B",
    "APUS-xDAN-4.0-MoE",
    "MiniMax-Text-01 (successor of abab6.5)",
    "OLMoE-1B-7B",
    "Phi-3.5-MoE",
    "DBRX",
    "Qwen2-57B-A14B",
    "Qwen3-30B-A3B",
    "Qwen3-235B-A22B",
    "DeepSeek-V2-Lite",
    "DeepSeek-V3",
    "Kimi-K2",
    "gpt-oss-20b",
    "gpt-oss-120b",
    "Llama-4-Scout",
    "GLM-4.5",
    "GLM-4.5-Air",
    "Hunyuan-Large",
    "LongCat-Flash",
]
HIDDEN = [
    "GPT-4",
    "Gemini 1.5",
    "Skywork 2.0 / 3.0 (Tiangong)",
    "MiniMax abab6 / abab6.5 / abab6.5s",
    "Step-2",
    "Doubao",
    "Yi-Lightning",
    "Xindan (xDAN)",
]
KEYS = {
    "name",
    "total_params",
    "active_params",
    "active_params_no_input_embedding",
    "active_params_no_embeddings",
    "flops_per_token",
    "router_flops_share",
    "published_total_params",
    "published_active_params",
}


def row(name: str, context: int = 4096) -> dict:
    (found,) = flops_rows([name], context)
    return found


def test_names_and_order():
    assert [r["name"] for r in flops_rows()] == DISCLOSED + HIDDEN


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_published_total(model: Model):
    # Within 2 % or rounding to its digits, unless the figure is disputed, and then it must deserve that.
    assert model.total.agrees(model.geometry.total_params) is not bool(model.disputed)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_published_active(model: Model):
    fits = model.active.agrees(model.active_conventions()[model.active_convention()])
    # Grok-1's 86B is second-hand, and DeepSeek cut 2.45B to 2.4B; both rows say so.
    assert fits is (model.name not in {"APUS-xDAN-4.0-MoE", "Grok-1", "DeepSeek-V2-Lite"})


def test_published_flops_in_their_own_convention():
    published = {m.name: (m.published_flops_from_geometry(), m.flops.per_token) for m in MODELS if m.flops}
    assert {name: (ours or 0) / theirs - 1 for name, (ours, theirs) in published.items()} == {
        "Yuan2.0-M32": pytest.approx(0.0011, abs=1e-4),  # 2 × 3.704B / 7.4G
        "Mixtral-8x7B": pytest.approx(-0.0016, abs=1e-4),  # 2 × 12.880B / 25.8G
        "DeepSeekMoE-16B": pytest.approx(0.0202, abs=1e-4),  # 75.9T / 74.4T per 4096 tokens
        "DeepSeek-V2 / V2.5": pytest.approx(-0.0071, abs=1e-4),  # 2 × 20.852B / 42G
    }


@pytest.mark.parametrize(
    ("name", "convention"),
    [
        ("deepseek-v3", "no input embedding"),
        ("gpt-oss-120b", "no input embedding"),
        ("dbrx", "no input embedding"),
        ("kimi-k2", "no input embedding"),
        ("skywork-moe", "no embeddings"),
        ("minimax-text", "no embeddings"),
        ("glm-4.5", "no embeddings"),
        ("mixtral", "all"),
        ("longcat", "no input embedding, mean token"),
    ],
)
def test_convention(name: str, convention: str):
    assert row(name)["active_params_convention"] == convention


def test_row_values_survive_json():
    rows = json.loads(json.dumps(flops_rows(), allow_nan=False))
    for r in rows[: len(DISCLOSED)]:
        assert r.keys() >= KEYS
        assert 0 < r["router_flops_share"] < 0.005
        assert r["active_params"] < r["total_params"]
        assert r["weight_bytes"]["bf16"] == 2 * r["total_params"]
    mixtral = rows[2]
    assert (mixtral["total_params"], mixtral["published_total_params"]) == (46_702_792_704, 46_700_000_000)
    assert mixtral["cards_gb"] == {"bf16": [96, 141, 192], "int8": [48, 80, 96, 141, 192], "int4": list(CARDS)}
    # 32 layers × 2 × 4096 × 8 of 27.64 GFLOP.
    assert mixtral["router_flops_share"] == pytest.approx(32 * 2 * 4096 * 8 / mixtral["flops_per_token"], rel=1e-12)
    assert mixtral["experts_flops_share"] == pytest.approx(0.8157, abs=1e-4)


def test_undisclosed_rows_are_null_and_say_what_is_known():
    for r in flops_rows(HIDDEN):
        assert all(r[key] is None for key in KEYS - {"name"})
        assert r["known"]
    assert row("gpt-4")["claims"]
    stand_ins = {system.stand_in for system in UNDISCLOSED} - {None}
    assert stand_ins <= set(DISCLOSED)


def test_longcat_alone_has_a_mean():
    with_mean = [r for r in flops_rows() if "active_params_mean" in r]
    assert [r["name"] for r in with_mean] == ["LongCat-Flash"]
    (r,) = with_mean
    saved = 28 * 4 * 3 * 6144 * 2048  # four of twelve choices per layer compute nothing
    assert r["active_params"] - r["active_params_mean"] == saved
    assert r["flops_per_token"] - r["flops_per_token_mean"] == 2 * saved


def test_context_moves_attention_only():
    short, long = row("mixtral", 1), row("mixtral", 8192)
    assert long["flops_per_token"] - short["flops_per_token"] == 32 * 4 * 4096 * 8191
    assert long["total_params"] == short["total_params"]
    # Half of the layers of gpt-oss see 128 positions at most.
    assert row("gpt-oss-20b", 4096)["flops_per_token"] - row("gpt-oss-20b", 1)["flops_per_token"] == (
        12 * 4 * 64 * 64 * (4095 + 127)
    )
    with pytest.raises(ValueError, match=r"^context must be at least 1 position .*, got 0$"):
        flops_rows(context=0)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("yuan2.0-m32", "Yuan2.0-M32"),
        ("YUAN 2.0 M32", "Yuan2.0-M32"),
        ("yuan", "Yuan2.0-M32"),
        ("glm-4.5", "GLM-4.5"),
        ("glm45a", "GLM-4.5-Air"),
        ("deepseek-v2", "DeepSeek-V2 / V2.5"),
        ("deepseek v2.5", "DeepSeek-V2 / V2.5"),
        ("deepseek-v2 / v2.5", "DeepSeek-V2 / V2.5"),
        ("deepseek-v2-l", "DeepSeek-V2-Lite"),
        ("gpt4", "GPT-4"),
        ("abab6.5", "MiniMax abab6 / abab6.5 / abab6.5s"),
        ("skywork 3.0", "Skywork 2.0 / 3.0 (Tiangong)"),
        ("skywork-moe", "Skywork-MoE (146B-A22B)"),
    ],
)
def test_find(typed: str, name: str):
    assert find(typed).name == name


@pytest.mark.parametrize("name", DISCLOSED + HIDDEN)
def test_find_takes_every_name_as_printed(name: str):
    assert find(name).name == name


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("qwen", r"^model 'qwen' is ambiguous: Qwen1\.5.*, Qwen2.*, Qwen3-30B.*, Qwen3-235B.*; give more of the name$"),
        ("mixtrall", r"^no published model 'mixtrall'; nearest: Mixtral-8x7B"),
        ("", r"^no published model ''; nearest: "),
        ("---", r"^no published model '---'; nearest: "),
    ],
)
def test_find_refuses_in_one_line(typed: str, message: str):
    with pytest.raises(ValueError, match=message) as refused:
        find(typed)
    assert "\n" not in str(refused.value)


def test_names_given_twice_make_one_row():
    assert [r["name"] for r in flops_rows(["mixtral", "GPT-4", "Mixtral-8x7B"])] == ["Mixtral-8x7B", "GPT-4"]


def test_table_text():
    text = render_table(flops_rows())
    for name in DISCLOSED + HIDDEN:
        assert re.search(rf"^ *{re.escape(name)}(:| )", text, re.MULTILINE)
    assert re.search(
        r"^Mixtral-8x7B +46\.70B +46\.7B +\+0\.0% +12\.88B +12\.9B +-0\.2%  all +27\.64 ", text, re.MULTILINE
    )
    assert "APUS-xDAN-4.0-MoE: 136B is 4 × 34B." in text
    assert text.count("does not hold") == 5
    assert "8192 positions" in render_table(flops_rows(["grok"], 8192))
    only_hidden = render_table(flops_rows(["doubao"]))
    assert only_hidden == "Undisclosed:\n  Doubao: named among mixtures of experts; nothing is public"


def test_model_text():
    text = render_model("yuan2.0-m32")
    for words in ("E = 32, K = 2, I = 8192", "39,942,842,368", "recipe yuan2-m32", "9.018 GFLOP forward", "1/19"):
        assert words in text
    assert "on one card of 80, 96, 141, 192 GB" in text
    assert "11.61B in the multi-token-prediction module" in render_model("deepseek-v3")
    assert "published figure wrong: 136B is 4 × 34B" in render_model("apus")
    assert "63.693 GFLOP forward" in render_model("longcat")
    assert "look at Skywork-MoE" in render_model("skywork 2.0")
    with pytest.raises(ValueError, match="no published model"):
        render_model("nonesuch")


def test_figure_keeps_its_digits():
    # 46.7B is meant to 0.1B; 1T to 1T, so 1.026T rounds to it although 2.6 % off.
    assert Figure("46.7B").value == 46_700_000_000
    assert Figure("46.7B").agrees(46.74e9, tolerance=0)
    assert not Figure("46.7B").agrees(46.76e9, tolerance=0)
    assert Figure("1T").agrees(1.026e12)
    assert not Figure("1.0T").agrees(1.06e12)
    assert str(Figure("86B", unverified=True)) == "86B?"
    with pytest.raises(ValueError, match="a figure ends in one of M/G/B/T, got '86'"):
        Figure("86")


def test_page_is_what_the_script_writes():
    docs = Path(__file__).parents[2] / "docs"
    page = runpy.run_path(str(docs / "published_models.py"))["page"]()
    assert (docs / "published-models.md").read_text(encoding="utf-8") == page, "run `python docs/published_models.py`"
