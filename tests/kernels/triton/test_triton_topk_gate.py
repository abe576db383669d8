"""`topk_gate` in Triton's interpreter: published gates, odd sizes, ties, masks, what has no order."""

import functools

import pytest
import torch
from against_reference import assert_agrees, dtypes_of_results, outputs_and_gradients, randn

from gatelab import kernels

GATES = {
    "olmoe": {},
    "mixtral": {"renormalize": True},
    "gpt-oss": {"select_on": "logits", "renormalize": True},
    "llama4": {"select_on": "logits", "activation": "sigmoid"},
    "deepseek-v2": {"num_groups": 6, "keep_groups": 3, "scale": 16.0},
    "deepseek-v3": {
        "activation": "sigmoid",
        "num_groups": 6,
        "keep_groups": 3,
        "groups_by": "two-best",
        "renormalize": True,
        "scale": 2.5,
    },
    "deepseek-v4": {"activation": "sqrt-softplus", "renormalize": True, "scale": 1.5},
}


def gate(top_k, **options):
    """The primitive as a function of the logits alone."""
    return functools.partial(kernels.topk_gate, top_k=top_k, **options)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", GATES)
def test_published_gates(name, dtype, biased):
    bias = 0.3 * randn(60, seed=1) if biased else None
    assert_agrees(gate(4, bias=bias, **GATES[name]), logits_TE=2 * randn(17, 60, dtype=dtype))


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(("T", "E", "K"), [(0, 5, 2), (1, 1, 1), (1, 3, 3), (17, 5, 5), (600, 60, 3), (33, 64, 6)])
def test_odd_sizes(T, E, K, renormalize):
    assert_agrees(gate(K, renormalize=renormalize), logits_TE=randn(T, E))


@pytest.mark.parametrize("groups_by", ["max", "two-best"])
@pytest.mark.parametrize(("E", "num_groups", "keep_groups"), [(15, 5, 2), (15, 3, 1), (8, 8, 3), (6, 2, 2), (16, 4, 3)])
def test_groups_that_are_no_powers_of_two(E, num_groups, keep_groups, groups_by):
    options = {"num_groups": num_groups, "keep_groups": keep_groups, "groups_by": groups_by}
    assert_agrees(gate(3, bias=randn(E, seed=1), activation="sigmoid", **options), logits_TE=randn(40, E))


@pytest.mark.parametrize("activation", kernels.topk_gate.__annotations__["activation"].__args__)
def test_masked_tokens_are_not_even_read(activation):
    mask = torch.arange(17) % 3 > 0
    logits = torch.where(mask[:, None], randn(17, 5), torch.nan)
    assert_agrees(gate(2, activation=activation, token_mask=mask), logits_TE=logits)
    assert_agrees(gate(2, activation=activation, token_mask=torch.zeros(17)), logits_TE=logits)


def test_an_expert_that_nobody_chooses():
    logits = randn(30, 4)
    logits[:, 2] = -20
    with kernels.use("triton"):
        chosen = kernels.topk_gate(logits, 2)
    assert chosen.tokens_per_expert[2] == 0
    assert chosen.tokens_per_expert.tolist() == torch.bincount(chosen.topk_ids.flatten(), minlength=4).tolist()


def test_strided_logits_and_an_expanded_gradient():
    assert_agrees(gate(2), logits_TE=randn(5, 17).t())
    assert_agrees(gate(2), logits_TE=randn(17, 10)[:, 1::2])
    logits = randn(4, 3).requires_grad_()
    with kernels.use("triton"):
        chosen = kernels.topk_gate(logits, 1)
    (chosen.topk_weights.sum() + chosen.logsumexp.sum()).backward()  # both gradients are one number, expanded
    with kernels.use("reference"):
        twin = kernels.topk_gate(logits, 1)
    expected = torch.autograd.grad(twin.topk_weights.sum() + twin.logsumexp.sum(), logits)[0]
    torch.testing.assert_close(logits.grad, expected)


def test_ties_go_to_the_lower_expert():
    # Row by row: all equal; two equal pairs; −0 and 0 are equal; and under the bias 1 of expert 2, 0 + 1 = 1 + 0.
    logits = torch.tensor([[2.0, 2, 2, 2], [1, 3, 3, 1], [-1, -0.0, 0, -2], [0, -9, 0, 1]])
    expected = [[0, 1, 2], [1, 2, 0], [1, 2, 0], [2, 3, 0]]
    bias = torch.tensor([0.0, 0, 1, 0])
    # 2 + 2 beats 3 + 0: the second best of a group may equal its best.
    pairs = torch.tensor([[2.0, 2, 3, 0]])
    with kernels.use("triton"):
        plain = kernels.topk_gate(logits, 3, select_on="logits").topk_ids
        biased = kernels.topk_gate(logits, 3, select_on="logits", bias=bias).topk_ids
        groups = kernels.topk_gate(torch.zeros(2, 6), 2, num_groups=3, keep_groups=1, groups_by="two-best").topk_ids
        equals = kernels.topk_gate(pairs, 1, select_on="logits", num_groups=2, groups_by="two-best").topk_ids
    assert plain[:3].tolist() == expected[:3]
    assert biased[3].tolist() == expected[3]
    assert groups.tolist() == [[0, 1], [0, 1]]
    assert equals.tolist() == [[0]]


def test_saturated_scores_tie_and_logits_do_not():
    logits = torch.tensor([[50.0, 60, 70, 80]])
    with kernels.use("triton"):
        assert kernels.topk_gate(logits, 2, activation="sigmoid").topk_ids.tolist() == [[0, 1]]
        assert kernels.topk_gate(logits, 2, activation="sigmoid", select_on="logits").topk_ids.tolist() == [[3, 2]]


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "sqrt-softplus"])
def test_extreme_logits(activation):
    logits = torch.tensor([[0.0, 80, -80, 20], [-50, -60, -70, -80], [-5, -10, -15, -20], [40, 30, 19, 21]])
    assert_agrees(gate(3, activation=activation, select_on="logits"), logits_TE=logits)  # the scores saturate


@pytest.mark.parametrize(("activation", "low"), [("softmax", -200.0), ("sigmoid", -104.0), ("softmax", -46.5)])
def test_a_vanishing_chosen_sum_leaves_everything_finite(activation, low):
    # The bias picks experts 2 and 3, whose scores are 0 in float32, or sum to some 4e-21, less than the floor of 1e-20.
    logits, bias = torch.tensor([[0.0, 0, low, low - 1]]), torch.tensor([0.0, 0, 2, 2])
    options = {"activation": activation, "renormalize": True, "bias": bias}
    run = gate(2, **options)
    results = outputs_and_gradients(run, {"logits_TE": logits}, "triton")
    expected = outputs_and_gradients(run, {"logits_TE": logits}, "reference")  # float64 does not underflow here
    for name, result in results.items():
        torch.testing.assert_close(result, expected[name], rtol=1e-4, atol=0, msg=name)  # exp's own rounding, twice
        assert bool(result.isfinite().all()), name


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("groups", [1, 2])
def test_whatever_the_logits_the_ids_are_experts(value, groups):
    logits = torch.full((3, 6), value)
    logits[1, :4] = 1.0
    with kernels.use("triton"), torch.no_grad(), pytest.warns(RuntimeWarning, match="invalid"):
        ids = kernels.topk_gate(logits, 3, num_groups=groups, groups_by="two-best").topk_ids
    assert bool(((ids >= 0) & (ids < 6)).all())
    assert all(len(set(row)) == 3 for row in ids.tolist())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dtypes_are_those_of_the_reference(dtype):
    inputs = {"logits_TE": randn(3, 4, dtype=dtype)}
    assert dtypes_of_results(gate(2), inputs, "triton") == dtypes_of_results(gate(2), inputs, "reference")


def test_compiles_without_a_graph_break():
    torch._dynamo.reset()

    def loss(logits):
        chosen = kernels.topk_gate(logits, 2, activation="sigmoid", renormalize=True)
        return chosen.topk_weights[:, 0].sum() + chosen.logsumexp.square().sum(), chosen.topk_ids

    logits = randn(5, 4).requires_grad_()
    with kernels.use("triton"):
        expected, expected_ids = loss(logits)
        value, ids = torch.compile(loss, fullgraph=True, backend="aot_eager")(logits)
    assert torch.equal(ids, expected_ids)
    gradients = [torch.autograd.grad(v, logits)[0] for v in (value, expected)]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_no_second_derivative():
    logits = randn(3, 4).requires_grad_()
    with kernels.use("triton"):
        weights = kernels.topk_gate(logits, 2).topk_weights
    (gradient,) = torch.autograd.grad(weights[:, 0].sum(), logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="topk_gate has no second derivative"):
        gradient.sum().backward()
