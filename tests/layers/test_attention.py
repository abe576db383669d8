"""Attention against transformers' Llama, and the filter against its own definition."""

import pytest
import torch
from torch.nn import functional as F

import gatelab
from gatelab.layers.attention import CausalAttention, FilteredAttention, rotate


def make(kind=CausalAttention, **kwargs):
    torch.manual_seed(0)
    return kind(24, 4, num_kv_heads=2, **kwargs)


def test_equals_llama_attention():
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

    config = LlamaConfig(hidden_size=24, num_attention_heads=4, num_key_value_heads=2, attention_bias=False)
    config._attn_implementation = "sdpa"
    theirs, ours = LlamaAttention(config, 0), make()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 9, 24)
    rope = LlamaRotaryEmbedding(config)(x, torch.arange(9)[None])
    mask = torch.ones(9, 9).tril().bool()[None, None]
    torch.testing.assert_close(ours(x), theirs(x, position_embeddings=rope, attention_mask=mask)[0])


@pytest.mark.parametrize("kind", [CausalAttention, FilteredAttention])
def test_decoding_equals_the_whole_sequence(kind):
    attention, x = make(kind), torch.randn(2, 9, 24)
    whole = attention(x)
    cache = {}
    pieces = [attention(x[:, :4], cache=cache)] + [attention(x[:, s : s + 1], cache=cache) for s in range(4, 9)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole)
    # The filter carries its two last inputs: one of D = 24 channels, one of D/2 = 12.
    history = [t.shape for t in cache.get(attention.filter, ())]
    assert history == ([(2, 24), (2, 12)] if kind is FilteredAttention else [])


@pytest.mark.parametrize("kind", [CausalAttention, FilteredAttention])
def test_left_padding_is_no_padding(kind):
    attention, x = make(kind), torch.randn(1, 9, 24)
    padded = torch.cat([torch.full((1, 3, 24), 7.0), x], 1)
    mask = torch.tensor([[0] * 3 + [1] * 9])
    got = attention(padded, token_mask=mask)
    assert got.isfinite().all()
    torch.testing.assert_close(got[:, 3:], attention(x))
    cache = {}
    attention(padded[:, :8], token_mask=mask[:, :8], cache=cache)
    later = attention(padded[:, 8:], token_mask=mask[:, 8:], cache=cache)
    torch.testing.assert_close(later, attention(x)[:, 5:])


def test_only_queries_and_keys_are_filtered():
    attention, x = make(FilteredAttention), torch.randn(2, 5, 24)
    plain = make()
    plain.load_state_dict(attention.state_dict(), strict=False)
    # The first position attends to itself alone, so its output is its own raw value, filter or not.
    torch.testing.assert_close(attention(x)[:, 0], plain(x)[:, 0])
    assert not torch.allclose(attention(x)[:, 1:], plain(x)[:, 1:])


def test_rotation_by_hand():
    # d = 2 has one frequency, base^0 = 1: at position p the pair turns by p radians.
    x = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    turned = rotate(x, torch.tensor([[2]]))
    torch.testing.assert_close(turned.flatten(), torch.tensor([2.0]).cos().new_tensor([-0.41614684, 0.90929743]))


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [({"num_heads": 5}, "num_heads=5"), ({"num_heads": 24, "head_dim": 3}, "head_dim=3"), ({"num_kv_heads": 3}, "=3")],
)
def test_sizes_that_do_not_divide(kwargs, words):
    with pytest.raises(ValueError, match=words):
        CausalAttention(**{"hidden_size": 24, "num_heads": 4, **kwargs})


class TestLocalizedFiltering:
    def reference(self, f, x):
        """Position by position, from the equations, in float64: o1_t = B0 x_{t-1} + B1 x_t + b1, and so on."""
        x = x.double()
        p = {name: value.detach().double() for name, value in f.named_parameters()}
        rows = []
        for row in x:
            before_x, before_o, out = torch.zeros_like(row[0]), torch.zeros_like(p["first_bias"]), []
            for x_t in row:
                o1 = p["first"][0] @ before_x + p["first"][1] @ x_t + p["first_bias"]
                o2 = p["second"][0] @ before_o + p["second"][1] @ o1 + p["second_bias"]
                y = x_t + o2
                out.append(y / (y.square().mean() + 1e-6).sqrt() * p["norm_weight"])
                before_x, before_o = x_t, o1
            rows.append(torch.stack(out))
        return torch.stack(rows)

    def test_equals_its_equations(self):
        torch.manual_seed(0)
        f, x = gatelab.LocalizedFiltering(10), torch.randn(2, 6, 10)
        torch.nn.init.uniform_(f.norm_weight)
        torch.testing.assert_close(f(x).double(), self.reference(f, x), atol=1e-6, rtol=1e-5)

    def test_equals_two_convolutions(self):
        # A kernel of two taps with one zero in front of x, and one in front of o1: torch's own convolution.
        torch.manual_seed(0)
        f, x = gatelab.LocalizedFiltering(10), torch.randn(2, 6, 10)
        o1 = F.conv1d(F.pad(x.mT, (1, 0)), f.first.permute(1, 2, 0), f.first_bias)
        o2 = F.conv1d(F.pad(o1, (1, 0)), f.second.permute(1, 2, 0), f.second_bias).mT
        torch.testing.assert_close(f(x), F.rms_norm(x + o2, (10,), f.norm_weight, 1e-6))

    @pytest.mark.parametrize("D", [2, 10, 64])
    def test_parameters(self, D):
        # Two taps D → D/2 and two D/2 → D are 2·D²; biases D/2 + D and the norm D are 2.5·D.
        f = gatelab.LocalizedFiltering(D)
        assert sum(p.numel() for p in f.parameters()) == 2 * D * D + 5 * D // 2

    def test_reads_three_positions_and_no_later_one(self):
        # One long row: the output at t depends on x_{t-2}, x_{t-1}, x_t alone.
        torch.manual_seed(0)
        f, x = gatelab.LocalizedFiltering(8), torch.randn(1, 7, 8, requires_grad=True)
        (gradient,) = torch.autograd.grad(f(x)[0, 4].sum(), x)
        assert gradient[0].any(1).tolist() == [False, False, True, True, True, False, False]

    def test_too_narrow(self):
        with pytest.raises(ValueError, match="hidden_size=1"):
            gatelab.LocalizedFiltering(1)
