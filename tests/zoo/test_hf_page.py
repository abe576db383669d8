"""docs/hugging-face.md says what the code does with every MoE block of the installed transformers."""

import re

import torch
import transformers
from hf_blocks import NAMED, PAGE, block_classes, table
from hf_models import tiny_model, token_ids

import gatelab
from gatelab.zoo.hf.host import hosted


def test_the_table_is_what_the_script_writes():
    written = PAGE.read_text(encoding="utf-8").split("<!-- blocks -->\n")[1].split("<!-- /blocks -->\n")[0]
    assert written == table(), "run `python docs/hf_blocks.py`"
    assert f"transformers {transformers.__version__} has {len(block_classes())} such classes" in written


def test_the_named_classes_are_among_them():
    assert set(NAMED) <= set(block_classes())


def test_the_examples_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # one saves a checkpoint
    model = tiny_model("qwen2_moe")
    scope = {"gatelab": gatelab, "torch": torch, "model": model, "x": torch.randn(1, 4, 32), "ids": token_ids()}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for block in blocks:
        exec(block, scope)
    assert len(blocks) == 3
    assert (tmp_path / "checkpoint" / "model.safetensors").exists()
    assert all(type(moe.router.select).__name__ == "BalancedAssignment" for moe in hosted(model).values())
