"""The formulas: by hand for three models, and what must hold for any shape."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatelab.zoo import MODELS, Block, Figure, Geometry, Model, find
from gatelab.zoo.models.dense import LLAMA2_7B
from gatelab.zoo.parts import ROLES, ROUTER, Attention, GatedMLP, LatentAttention, LightningAttention, MoE


def geometry(name: str) -> Geometry:
    system = find(name)
    assert isinstance(system, Model)
    return system.geometry


def test_mixtral_by_hand():
    g = geometry("mixtral-8x7b")
    attention = 2 * 4096 * 4096 + 2 * 4096 * 1024  # q and o; k and v of 8 heads: 41,943,040
    expert = 3 * 4096 * 14336  # 176,160,768
    router = 4096 * 8  # 32,768
    table = 32000 * 4096  # 131,072,000
    norms = (2 * 32 + 1) * 4096  # two a layer and the last: 266,240
    assert g.total_params == 32 * (attention + 8 * expert + router) + 2 * table + norms == 46_702_792_704
    active = 32 * (attention + 2 * expert + router) + 2 * table + norms
    assert g.active_params == active == 12_879_925_248
    assert g.active_params_no_input_embedding == active - table
    assert g.active_params_no_embeddings == active - 2 * table
    # Matrices are all active weights but the looked-up table and the norms; q·k and p·v: 4 × 4096 positions × 4096.
    assert g.flops_per_token(4096) == 2 * (active - table - norms) + 32 * 4 * 4096 * 4096
    assert g.training_flops_per_token(4096) == 3 * g.flops_per_token(4096)


def test_deepseek_v3_by_hand():
    g = geometry("deepseek-v3")
    queries = 7168 * 1536 + 1536 * 128 * (128 + 64)  # down to 1536, up to 128 heads of 192: 48,758,784
    keys_values = 7168 * (512 + 64) + 512 * 128 * (128 + 128)  # latent and shared rotary key, then up: 20,905,984
    attention = queries + keys_values + 128 * 128 * 7168  # and the output: 187,105,280
    attention_norms = 1536 + 512
    dense, expert = 3 * 7168 * 18432, 3 * 7168 * 2048  # 396,361,728 and 44,040,192
    router, bias = 7168 * 256, 256
    tables_and_norms = 2 * 129280 * 7168 + (2 * 61 + 1) * 7168
    everywhere = 61 * (attention + attention_norms) + 3 * dense + tables_and_norms
    assert g.total_params == everywhere + 58 * (257 * expert + router + bias) == 671_026_419_200
    assert g.active_params == everywhere + 58 * (9 * expert + router + bias)
    # Scores over 192 channels, values over 128, for 128 heads: 2 FLOPs per position and channel.
    matrices = 61 * attention + 3 * dense + 58 * (9 * expert + router) + 129280 * 7168
    assert g.flops_per_token(4096) == 2 * matrices + 61 * 2 * 4096 * 128 * (192 + 128)
    assert g.by_role()[ROUTER].flops == 58 * 2 * router
    # The MTP module: one more sparse layer, 2D → D, three norms. With copies of both tables the checkpoint is 685B.
    module = attention + attention_norms + 2 * 7168 + 257 * expert + router + bias + 2 * 7168**2 + 3 * 7168
    assert g.mtp_params == module
    assert Figure("685B").agrees(g.total_params + module + 2 * 129280 * 7168, tolerance=1e-3)


def test_yuan_by_hand():
    g = geometry("yuan2.0-m32")
    attention = 4 * 2048 * 4096  # q, k, v, o of 16 heads of 256: 33,554,432
    filtering = 2 * (2048 * 1024 + 1024 * 2048)  # two taps down to 1024, two up: 2D² = 8,388,608
    filtering_vectors = 1024 + 2048 + 2048  # two biases and a norm: 2.5D = 5,120
    expert = 3 * 2048 * 8192  # 50,331,648
    router = 3 * 32 * 2048  # q, k, v: 196,608
    table, norms = 135040 * 2048, (2 * 24 + 1) * 2048  # one table: tied
    layer = attention + filtering + filtering_vectors + router
    assert g.total_params == 24 * (layer + 32 * expert) + table + norms == 39_942_842_368
    assert g.active_params == g.active_params_no_input_embedding == 24 * (layer + 2 * expert) + table + norms
    assert g.active_params_no_embeddings == g.active_params - table
    assert 2 * g.active_params / 1e9 == pytest.approx(7.4, abs=0.05)
    # 6DE for the three products and 4E² for attention over the 32 experts.
    assert g.by_role()[ROUTER].flops == 24 * (6 * 2048 * 32 + 4 * 32 * 32)
    matrices = 24 * (attention + filtering + 2 * expert)
    assert g.flops_per_token(1) == 2 * (matrices + table) + 24 * (6 * 2048 * 32 + 4 * 32 * 32 + 4 * 1 * 4096)


def test_longcat_mean_token_uses_eight_of_twelve():
    g = geometry("longcat-flash")
    expert = 3 * 6144 * 2048
    assert g.mean_idle_params == 28 * 4 * expert  # 12 × 256 / 768 = 4 identity experts per layer
    assert g.by_role()[ROUTER].active_params == 28 * 6144 * 768
    # The report's range, 18.6B to 31.3B without the input embedding (its digits are cut, not rounded).
    most = g.active_params_no_input_embedding
    assert most == pytest.approx(31.3e9, rel=0.005)
    assert most - 28 * 12 * expert == pytest.approx(18.6e9, rel=0.01)
    assert geometry("mixtral").mean_idle_params == 0


def test_biases_of_idle_experts_are_not_active():
    g = geometry("gpt-oss-120b")
    expert = 3 * 2880 * 2880 + 2 * 2880 + 2880  # three matrices, biases after gate and up and after down
    assert g.total_params - g.active_params == 36 * (128 - 4) * expert


def test_attention_variants():
    def flops(part, context):
        return sum(tally.flops for tally in part.tallies(8, context))

    full = Attention(heads=4, kv_heads=2, head_dim=2)
    assert flops(full, 3) == 2 * (2 * 8 * 8 + 2 * 8 * 4) + 4 * 3 * 8  # q, o; k, v; three positions × 8 channels
    assert flops(replace(full, window=2), 3) == flops(full, 2)
    assert flops(replace(full, window=2), 1) == flops(full, 1)
    assert flops(replace(full, reuses_kv=True), 3) == flops(full, 3) - 2 * 2 * 8 * 4
    linear = LightningAttention(heads=4, head_dim=2)
    # q, k, v, gate and output 8 × 8 each; a 2 × 2 state per head, written and read.
    assert flops(linear, 1) == flops(linear, 10**6) == 2 * 5 * 64 + 4 * 4 * 4


parts = st.one_of(
    st.builds(Attention, heads=st.integers(1, 8), kv_heads=st.integers(1, 8), head_dim=st.integers(1, 16)),
    st.builds(LatentAttention, heads=st.integers(1, 8), q_lora_rank=st.none() | st.integers(1, 16)),
    st.builds(GatedMLP, st.integers(1, 64)),
    st.builds(
        MoE,
        num_experts=st.integers(4, 16),
        top_k=st.integers(1, 4),
        intermediate_size=st.integers(1, 64),
        router=st.just("mixtral"),
        zero_experts=st.integers(0, 4),
        shared_intermediate_size=st.integers(0, 32),
        attention_router=st.booleans(),
        router_bias=st.booleans(),
        expert_bias=st.booleans(),
    ),
)
geometries = st.builds(
    Geometry,
    hidden_size=st.integers(2, 32),
    vocab_size=st.integers(1, 100),
    tie_embeddings=st.booleans(),
    blocks=st.lists(st.builds(Block, st.integers(1, 3), st.lists(parts, max_size=3).map(tuple)), max_size=3).map(tuple),
)


@given(geometries, st.integers(1, 1000))
def test_any_shape(g: Geometry, context: int):
    assert g.active_params_no_embeddings <= g.active_params_no_input_embedding <= g.active_params <= g.total_params
    assert 0 <= g.mean_idle_params <= g.active_params_no_embeddings
    assert g.flops_per_token(context) <= g.flops_per_token(context + 1)
    table = g.vocab_size * g.hidden_size
    assert g.active_params_no_input_embedding == g.active_params - (0 if g.tie_embeddings else table)
    assert g.active_params_no_embeddings == g.active_params_no_input_embedding - table
    tied = replace(g, tie_embeddings=True)
    assert g.total_params - tied.total_params == (0 if g.tie_embeddings else table)
    assert tied.flops_per_token(context) == g.flops_per_token(context)
    twice = replace(g, blocks=g.blocks + g.blocks)
    assert twice.active_params_no_embeddings == 2 * g.active_params_no_embeddings - g.hidden_size  # one last norm
    assert sum(tally.flops for tally in g.by_role(context).values()) == g.flops_per_token(context)


def test_roles_partition_and_weights_are_bytes():
    for model in MODELS:
        assert set(model.geometry.by_role()) <= set(ROLES)
    assert [LLAMA2_7B.weight_bytes(p) for p in ("bf16", "int8", "int4")] == [
        2 * LLAMA2_7B.total_params,
        LLAMA2_7B.total_params,
        LLAMA2_7B.total_params // 2,
    ]
