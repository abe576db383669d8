"""A gate in a package of its own, installed beside gatelab and found through the entry point `gatelab.routers`."""

import os
import subprocess
import sys
import textwrap

import pytest

GATE = """
    import torch
    from gatelab import Router
    from gatelab.routers.score import LinearScore
    from gatelab.routers.select import TopK

    def coldest(logits_TE):
        return torch.softmax(-logits_TE, -1)

    def coldest_gate(hidden_size, num_experts, top_k=1):
        '''The experts with the least logits. Deviations: none.'''
        return Router(score=LinearScore(hidden_size, num_experts), activation=coldest, select=TopK(top_k))
"""


@pytest.fixture
def run(tmp_path):
    """Runs Python where the package and a broken one are installed."""
    package = tmp_path / "coldgates"
    package.mkdir()
    (package / "__init__.py").write_text(textwrap.dedent(GATE))
    for name, points in {
        "coldgates": "coldest = coldgates:coldest_gate",
        "broken": "broken-gate = no_such_module:gate",
    }.items():
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[gatelab.routers]\n{points}\n")

    def python(*arguments):
        env = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env)

    return python


def test_it_is_listed_made_and_keeps_the_contract(run):
    script = """
        import gatelab
        from gatelab.testing import check_router
        assert "coldest" in gatelab.list_routers("cold*")
        assert "least logits" in str(gatelab.describe_router("coldest"))
        router = gatelab.create_router("coldest", hidden_size=8, num_experts=4, top_k=2)
        assert router.guarantees.experts_per_token == 2
        check_router(lambda: gatelab.create_router("coldest", 16, 5))
        try:
            gatelab.create_router("broken-gate", 8, 4)
        except ValueError as error:
            print(error)
    """
    ended = run("-c", textwrap.dedent(script))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("router 'broken-gate' does not load: ModuleNotFoundError: ")


def test_the_command_line_shows_it_and_names_the_broken_one(run):
    ended = run("-m", "gatelab", "list", "*gate")
    assert (ended.returncode, "broken-gate: router 'broken-gate' does not load" in ended.stderr) == (2, True)
    ended = run("-m", "gatelab", "list", "coldest")
    assert ended.returncode == 0
    assert "The experts with the least logits." in ended.stdout
