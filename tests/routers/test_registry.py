"""Gates by name."""

import pytest

import gatelab

MINE = '''
import gatelab
from gatelab.routers.score import LinearScore
from gatelab.routers.select import TopK

def MyGate(hidden_size, num_experts, top_k=1):
    """Mine."""
    return gatelab.Router(score=LinearScore(hidden_size, num_experts), select=TopK(top_k))

nothing = 3
def other(hidden_size, num_experts): return "a string"
'''


def test_lists_by_pattern():
    assert {"topk-softmax", "attention", "expert-choice", "balanced-assignment"} <= set(gatelab.list_routers())
    assert gatelab.list_routers("*choice*") == ["expert-choice"]
    assert gatelab.list_routers("nothing*") == []


def test_a_file_is_a_gate(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    router = gatelab.create_router(f"{tmp_path}/mine.py:MyGate", 8, 4, 2)
    assert router.guarantees.experts_per_token == 2
    assert gatelab.describe_router(f"{tmp_path}/mine.py:MyGate").doc == "Mine."


def test_a_module_is_a_gate(tmp_path, monkeypatch):
    (tmp_path / "my_gate_module.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    assert gatelab.create_router("my_gate_module:MyGate", 8, 4).num_experts == 4


def test_an_edited_file_is_read_anew(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    gatelab.create_router(f"{path}:MyGate", 8, 4)
    path.write_text(MINE.replace("top_k=1", "top_k=3"))
    assert gatelab.create_router(f"{path}:MyGate", 8, 4).guarantees.experts_per_token == 3


def test_published_top_k_is_clipped_to_the_experts_there_are():
    assert gatelab.create_router("topk-softmax", 8, 1).guarantees.experts_per_token == 1


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        (("topk-sofmax", 8, 4), {}, "did you mean topk-softmax"),
        (("qqq", 8, 4), {}, r"see gatelab.list_routers\(\)"),
        (("topk-softmax", 8, 4, 5), {}, "top_k=5 is more than num_experts=4"),
        (("topk-softmax", 8, 4, 0), {}, "top_k=0 must be a positive integer"),
        (("topk-softmax", 8, 0), {}, "num_experts=0 must be a positive integer"),
        (("topk-softmax", 8.5, 4), {}, "hidden_size=8.5 must be a positive integer"),
        (("topk-softmax", 8, 4), {"lfa": True}, "has no option 'lfa'; it has top_k"),
        (("dense", 8, 4, 2), {}, "dense uses all num_experts=4"),
        (("absent.py:Gate", 8, 4), {}, "does not load: FileNotFoundError"),
        (("{dir}/mine.py:Gate", 8, 4), {}, "does not load: AttributeError"),
        (("{dir}/mine.py:nothing", 8, 4), {}, "is a int; it must be a callable"),
        (("{dir}/mine.py:other", 8, 4), {}, "made a str; it must return a gatelab.Router"),
        (("{dir}/broken.py:Gate", 8, 4), {}, "does not load: ZeroDivisionError"),
    ],
)
def test_wrong_names_and_sizes(tmp_path, args, kwargs, words):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(ValueError, match=words) as error:
        gatelab.create_router(args[0].replace("{dir}", str(tmp_path)), *args[1:], **kwargs)
    assert "\n" not in str(error.value)


def test_describe_says_everything():
    text = str(gatelab.describe_router("attention", hidden_size=10, num_experts=4))
    # 3·D·E = 120 parameters, 6·D·E + 4·E² = 304 FLOPs.
    for words in (
        "softmax_j(q_i k_j)",
        "2405.17976",
        "In training: causal=True",
        "In evaluation",
        "120 parameters",
        "304",
    ):
        assert words in text
