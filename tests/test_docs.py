"""What the README shows runs, and its tables are those of the code."""

import re
import runpy
from pathlib import Path

import pytest

import gatelab
from gatelab.testing import check_router

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_readme_blocks_run():
    scope: dict[str, object] = {}
    for block in BLOCKS:
        exec(block, scope)
    assert len(BLOCKS) >= 3


def test_the_page_on_training_runs():
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, {})


def test_readme_shows_the_example_file():
    code = (ROOT / "examples" / "mygate.py").read_text(encoding="utf-8")
    assert any(block.strip() in code for block in BLOCKS)


def test_the_example_gate_keeps_the_contract():
    name = f"{ROOT / 'examples' / 'mygate.py'}:MyGate"
    check_router(lambda: gatelab.create_router(name, 16, 5))


def test_tables_are_fresh():
    main = runpy.run_path(str(ROOT / "docs" / "tables.py"))["main"]
    assert main(check=True) == 0, "README.md is stale; run make docs"


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists(), link


@pytest.mark.parametrize("example", sorted(p.name for p in (ROOT / "examples").glob("train*.py")))
def test_examples_run(example):
    # Both assert that the gates' state equals the plain loop's, bit by bit.
    scope = runpy.run_path(str(ROOT / "examples" / example), run_name="__main__")
    assert any(value.any() for value in scope["router_state"](scope["train"]()).values()), "state never moved"
