"""The tables of `gatelab speed`, on sizes that take no time: who is in them, what is checked, what is counted."""

import dataclasses
import json

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import gatelab
from gatelab.bench.commands import speed as command
from gatelab.bench.speed import experts, gate, layer, memory, provenance
from gatelab.bench.speed.alternate import alternate, median_ratio
from gatelab.bench.speed.contest import COPY, DENSE, GATE, OURS, Case, Contestant, compete
from gatelab.bench.speed.gate import MATMUL, fault

SIZE = (2, 8, 16, 4, 2)  # B, S, D, E, K
CASE = Case(T=64, D=16, I=8, E=4, K=2)
WHENCE = {"machine", "versions", "commit"}

BROKEN = """
from torch import Tensor
from gatelab.routers.recipes.topk import topk_softmax
from gatelab.routers.router import Router

class Scrambled(Router):
    def forward(self, hidden_states, **options):
        routing = super().forward(hidden_states, **options)
        routing.token_index.zero_()
        return routing

def Broken(hidden_size: int, num_experts: int, top_k: int = 2) -> Router:
    router = topk_softmax(hidden_size, num_experts, top_k)
    router.__class__ = Scrambled
    return router
"""


@pytest.fixture(scope="module")
def gates():
    return {row["router"]: row for row in gate.run([SIZE], rounds=2)}


class TestGate:
    def test_every_recipe_is_right_and_timed(self, gates):
        assert list(gates) == [gate.COPY, MATMUL, *gatelab.list_routers()]
        for name in gatelab.list_routers():
            row = gates[name]
            assert row["check"] == "ok", name
            assert row["milliseconds"] > 0
            assert row["training_milliseconds"] > 0
            assert row["ratio_to_copy"] > 0
            assert row["ratio_to_matmul"] > 0
            assert row.keys() >= WHENCE

    def test_what_a_gate_computes_and_moves(self, gates):
        # T = 16, D = 16, E = 4: 2·16·16·4 FLOPs
        row = gates["topk-softmax"]
        assert row["flops"] == gates[MATMUL]["flops"] == 2048
        # In: 16·16 hidden states and 4·16 weights of 4 bytes. Out: 16·4 logits, as many probabilities, 32 weights and
        # the loss of 4 bytes; 32 tokens, 32 choices, 5 offsets and 4 counts of 8.
        assert row["bytes"] == 4 * (256 + 64 + 64 + 64 + 32 + 1) + 8 * (32 + 32 + 5 + 4)
        assert gates[gate.COPY]["bytes"] == 2 * 4 * 16 * 4
        assert row["experts_per_token"] == 2
        assert gates["dense"]["experts_per_token"] == 4

    def test_a_gate_that_fails_its_check_has_no_time(self, tmp_path):
        (tmp_path / "broken.py").write_text(BROKEN)
        rows = {row["router"]: row for row in gate.run([SIZE], [f"{tmp_path}/broken.py:Broken", "mixtral"], rounds=1)}
        row = rows[f"{tmp_path}/broken.py:Broken"]
        assert row["check"] == "a token is twice at the same expert"
        assert row["milliseconds"] is row["training_milliseconds"] is row["ratio_to_copy"] is None
        assert rows["mixtral"]["milliseconds"] > 0

    def test_sizes_that_a_recipe_cannot_have(self):
        *_, grouped, two = gate.run([(1, 8, 16, 6, 3)], ["attention-lfa", "gshard"], rounds=1)
        assert grouped["experts_per_token"] == 3
        assert (two["check"], two["experts_per_token"]) == ("ok", 2)  # 3 is refused, 2 published

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda r: {"weights": r.weights * torch.nan}, "NaN or inf"),
            (lambda r: {"expert_offsets": r.expert_offsets + 1}, "expert_offsets are not offsets"),
            (lambda r: {"token_index": r.token_index + 1}, "token_index is out of range"),
            (lambda r: {"token_index": r.token_index * 0}, "a token is twice at the same expert"),
            (lambda r: {"requested": r.requested - 1}, "more assignments than requested"),
            (lambda r: {"requested": r.requested + 1}, "assignments are dropped"),
        ],
    )
    def test_faults(self, change, says):

        router = gatelab.create_router("topk-softmax", 16, 4, 2)
        routing = router(torch.randn(8, 16))
        assert fault(routing, router) is None
        assert fault(dataclasses.replace(routing, **change(routing)), router) == says

    def test_assignments_that_are_missing(self):
        three = gatelab.create_router("topk-softmax", 16, 4, 3)
        routing = gatelab.create_router("topk-softmax", 16, 4, 2)(torch.randn(8, 16))
        assert fault(routing, three) == "16 assignments of 8 tokens, 3 each are promised"


@pytest.mark.parametrize("topic", [layer, experts])
class TestLayers:
    def test_all_peers_answer_as_we_do(self, topic):
        rows = {row["layer"]: row for row in topic.run([CASE], rounds=1)}
        assert set(rows) - {"st-moe-pytorch"} == {
            *(DENSE, OURS, "transformers eager", "transformers grouped_mm"),
            *([GATE] if topic is layer else []),
        }
        assert rows[DENSE]["ratio"] == 1
        for name in (OURS, "transformers eager", "transformers grouped_mm"):
            assert rows[name]["check"] < 1e-5
            assert rows[name]["milliseconds"] > 0
        assert rows[OURS].keys() >= {"tokens", "dtype", "pass", *WHENCE}

    def test_bfloat16_forward_and_backward(self, topic):
        (row,) = [
            row for row in topic.run([Case(64, 16, 8, 4, 2, torch.bfloat16, True)], rounds=1) if row["layer"] == OURS
        ]
        assert (row["dtype"], row["pass"]) == ("bfloat16", "forward + backward")
        assert 1e-4 < row["check"] < 0.02
        assert row["milliseconds"] > 0

    def test_few_tokens_against_a_copy_of_the_used_weights(self, topic):
        rows = topic.run([Case(T=1, D=16, I=8, E=4, K=2)], rounds=1)
        assert rows[-1]["layer"] == COPY
        assert rows[-1]["milliseconds"] > 0
        assert not [row for row in topic.run([Case(1, 16, 8, 4, 2, backward=True)], rounds=1) if row["layer"] == COPY]


class _Wrong(nn.Module):
    def forward(self, x_TD):
        return 1.03 * x_TD


def test_a_layer_that_fails_its_check_has_no_time():
    entered = layer.enter(CASE, 0)
    entered.contestants["wrong"] = Contestant(_Wrong(), entered.x_TD)
    (row,) = [row for row in compete(entered, 1, lambda row: None) if row["layer"] == "wrong"]
    assert row["check"] == pytest.approx(0.03)
    assert row["milliseconds"] is row["ratio"] is None


def test_the_copy_moves_the_weights_of_used_experts_alone(monkeypatch):
    copied = []
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, source: copied.append(source.numel()))
    call = layer.enter(Case(1, 16, 8, 4, 2), 0).beside[COPY]
    copied.clear()
    call()
    assert copied == [2 * 8 * 16, 8 * 16] * 2  # K = 2 experts of one token: gate_up_proj (16, 16), down_proj (16, 8)


def test_turns_and_ratios():
    log = []
    seconds = alternate({"a": lambda: log.append("a"), "b": lambda: log.append("b")}, 8)
    rounds = ["".join(log[i : i + 2]) for i in range(0, 18, 2)]  # the first does not count
    assert set(rounds) == {"ab", "ba"}
    assert {name: len(times) for name, times in seconds.items()} == {"a": 8, "b": 8}
    assert median_ratio([1.0, 9.0, 2.0], [2.0, 3.0, 2.0]) == 1.0  # of 0.5, 3, 1


def test_peak_memory_of_a_child():
    big = Case(512, 64, 64, 4, 2, backward=True)
    (row,) = memory.run([big], [OURS])
    # Gradients of 4·(128·64 + 64·64) weights and of x, 4 bytes each, are the least it must add: 0.33 MB
    assert row["peak_megabytes"] > 0.33
    assert row["layer"] == OURS


def test_the_command_prints_a_line_per_row(monkeypatch):
    def rows(seed, report):
        report({})
        return [{"router": "fast", "check": "ok", "milliseconds": 0.12345}, {"router": "wrong", "check": "NaN or inf"}]

    monkeypatch.setattr(command, "_topics", lambda device: {"gate": rows})
    result = CliRunner().invoke(command.speed, ["gate"])
    assert result.stdout.splitlines() == [
        "gate",
        "router  check       milliseconds",
        "fast    ok          0.123",
        "wrong   NaN or inf  -",
    ]
    assert json.loads(CliRunner().invoke(command.speed, ["gate", "--json"]).stdout) == {"gate": rows(0, lambda row: 0)}


def test_a_late_failure_loses_no_row(monkeypatch):
    def fails(report):
        report({"router": "second"})
        raise RuntimeError("no memory")

    monkeypatch.setattr(command, "_topics", lambda device: {"gate": lambda: [{"router": "first"}], "layer": fails})
    result = CliRunner().invoke(command.speed, ["--json"])
    assert str(result.exception) == "no memory"
    assert json.loads(result.stdout) == {"gate": [{"router": "first"}], "layer": [{"router": "second"}]}


def test_topics_are_found_by_their_run():
    assert command._topics("cpu").keys() == {"assignment", "experts", "gate", "layer", "memory"}
    assert command._topics("cuda").keys() == {"experts", "gate", "layer"}


def test_provenance_without_a_checkout(monkeypatch):
    provenance.provenance.cache_clear()
    monkeypatch.setenv("PATH", "")
    assert provenance.provenance()["commit"] == ""
    provenance.provenance.cache_clear()
