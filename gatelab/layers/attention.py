"""Causal self-attention, plain and with Yuan 2.0's localized filtering before queries and keys."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from gatelab.routers.filtering import LocalizedFiltering


class CausalAttention(nn.Module):
    """Multi-head causal self-attention with rotary positions and grouped key-value heads; no biases.

    Args:
        hidden_size: D.
        num_heads: H query heads.
        num_kv_heads: heads of keys and values, a divisor of H; default H.
        head_dim: width of a head, even; default D / H.
        rope_base: base of the rotary frequencies.
        filter: a module (x_BSD, token_mask=, cache=) -> (B, S, D) that queries and keys read through; values never do.

    Raises:
        ValueError: sizes that do not divide.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        rope_base: float = 10000.0,
        filter: nn.Module | None = None,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if head_dim is None:
            if hidden_size % num_heads:
                raise ValueError(f"num_heads={num_heads} does not divide hidden_size={hidden_size}; pass head_dim")
            head_dim = hidden_size // num_heads
        if head_dim % 2:
            raise ValueError(f"head_dim={head_dim} is odd; rotary positions need an even one")
        if num_heads % num_kv_heads:
            raise ValueError(f"num_kv_heads={num_kv_heads} does not divide num_heads={num_heads}")
        self.hidden_size, self.head_dim, self.rope_base = hidden_size, head_dim, rope_base
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.q_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size, bias=False)
        self.filter = filter

    def forward(
        self, x_BSD: Tensor, *, token_mask: Tensor | None = None, cache: dict[Any, Any] | None = None
    ) -> Tensor:
        """Attend.

        Args:
            x_BSD: (B, S, D).
            token_mask: (B, S), True = a real token. Others are attended by nobody, and positions count real tokens,
                so that left padding is the same as none.
            cache: a dict, one per layer, to decode with: pass {} first and the same one on each call. It holds keys,
                values and the filter's two last inputs.

        Returns:
            (B, S, D). Rows of masked tokens are arbitrary but finite.
        """
        B, S, _ = x_BSD.shape
        real = torch.ones(B, S, dtype=torch.bool, device=x_BSD.device) if token_mask is None else token_mask.bool()
        seen = cache["length"] if cache and "length" in cache else real.new_zeros(B, dtype=torch.int64)
        positions = seen[:, None] + (real.cumsum(1) - 1).clamp(min=0)
        filtered = x_BSD if self.filter is None else self.filter(x_BSD, token_mask=token_mask, cache=cache)
        q = rearrange(self.q_proj(filtered), "b s (h d) -> b h s d", d=self.head_dim)
        k = rearrange(self.k_proj(filtered), "b s (h d) -> b h s d", d=self.head_dim)
        v = rearrange(self.v_proj(x_BSD), "b s (h d) -> b h s d", d=self.head_dim)
        q, k = (rotate(t, positions, self.rope_base) for t in (q, k))
        keys_real = real
        if cache is not None:
            if "keys" in cache:
                k, v = torch.cat([cache["keys"], k], dim=2), torch.cat([cache["values"], v], dim=2)
                keys_real = torch.cat([cache["real"], real], dim=1)
            cache.update(keys=k, values=v, real=keys_real, length=seen + real.sum(1))
        grouped = self.num_kv_heads != self.num_heads
        if token_mask is None and k.shape[2] == S:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        else:
            here = torch.arange(k.shape[2] - S, k.shape[2], device=x_BSD.device)[:, None]
            there = torch.arange(k.shape[2], device=x_BSD.device)
            # Every query may look at itself: a softmax over no key at all would be NaN.
            allowed = ((there <= here) & keys_real[:, None, None, :]) | (there == here)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, enable_gqa=grouped)
        return self.o_proj(rearrange(y, "b h s d -> b s (h d)"))


class FilteredAttention(CausalAttention):
    """Self-attention whose queries and keys see the LFA-filtered sequence, values the raw one (Yuan 2.0).

    Takes the arguments of `CausalAttention` but `filter`.

    Source: Yuan 2.0, arXiv 2311.15786, §2.1. Deviation: separate query and key projections, where the released
    checkpoint interleaves them inside each head.
    """

    def __init__(self, hidden_size: int, num_heads: int, **kwargs: Any) -> None:
        super().__init__(hidden_size, num_heads, filter=LocalizedFiltering(hidden_size), **kwargs)


def rotate(x_BHSd: Tensor, positions_BS: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary position embedding: pairs (i, i + d/2) turn by position · base^(−2i/d) radians.

    Source: RoFormer, arXiv 2104.09864, §3.2; halves instead of neighbours are paired, as in Llama's code.
    """
    half = x_BHSd.shape[-1] // 2
    exponent = torch.arange(half, device=x_BHSd.device, dtype=torch.float32) / half
    angle = positions_BS[:, None, :, None] * base**-exponent
    cos, sin = angle.cos().to(x_BHSd.dtype), angle.sin().to(x_BHSd.dtype)
    first, second = x_BHSd[..., :half], x_BHSd[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
