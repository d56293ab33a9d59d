"""A causal transformer that runs over a whole sequence or token by token with cached keys and values.

Dimension letters: B batch, N tokens, R tokens that there is room for, P heads, W width (of a head, in keys and values).
Source: GPT-2's block (pre-LayerNorm, tanh-GELU), as Ma et al. (arXiv 2402.05290) use it, without dropout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

_ROOM = 16
"""Tokens for which a cache first has room; it doubles when that is full."""


@dataclass(frozen=True)
class Cache:
    """Keys and values of the tokens so far. `extended` gives the next one and leaves this one as it is."""

    key_BPRW: torch.Tensor
    """Room for R tokens, the first `length` of which count."""
    value_BPRW: torch.Tensor
    length: int
    taken: list[int]
    """Of one number: tokens in this room, which later caches of the same rollout share."""

    @classmethod
    def of(cls, key_BPNW: torch.Tensor, value_BPNW: torch.Tensor) -> Cache:
        return cls(key_BPNW, value_BPNW, key_BPNW.shape[2], [key_BPNW.shape[2]])

    @property
    def keys_values(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.key_BPRW[:, :, : self.length], self.value_BPRW[:, :, : self.length]

    def extended(self, key_BP1W: torch.Tensor, value_BP1W: torch.Tensor) -> Cache:
        """With one token more. Where no gradient is asked for it is written into the room that is left: copying the
        cache for every token takes half the time of an unroll over 100 steps."""
        key, value = self.keys_values
        if torch.is_grad_enabled():
            return Cache.of(torch.cat([key, key_BP1W], 2), torch.cat([value, value_BP1W], 2))
        n, room = self.length, self
        if n == self.key_BPRW.shape[2] or self.taken[0] > n:  # full, or another rollout went on from here
            size = max(_ROOM, 2 * n) - n
            room = Cache(F.pad(key, (0, 0, 0, size)), F.pad(value, (0, 0, 0, size)), n, [n])
        room.key_BPRW[:, :, n : n + 1] = key_BP1W
        room.value_BPRW[:, :, n : n + 1] = value_BP1W
        room.taken[0] = n + 1
        return replace(room, length=n + 1)


class TransformerBlock(nn.Module):
    """Attention and MLP, each on a normalised input and added to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_in, self.mlp_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BNW: torch.Tensor, cache: Cache | None) -> tuple[torch.Tensor, Cache]:
        """Output and the keys and values so far. With a cache, N tokens that follow those in it: N must be 1."""
        query, key, value = (
            part.unflatten(-1, (self._heads, -1)).transpose(1, 2)  # [B, P, N, W / P]
            for part in self.query_key_value(self.norm_attention(x_BNW)).chunk(3, -1)
        )
        extended = Cache.of(key, value) if cache is None else cache.extended(key, value)
        attended = F.scaled_dot_product_attention(query, *extended.keys_values, is_causal=cache is None)
        x_BNW = x_BNW + self.attention_out(attended.transpose(1, 2).flatten(2))
        hidden = F.gelu(self.mlp_in(self.norm_mlp(x_BNW)), approximate="tanh")
        return x_BNW + self.mlp_out(hidden), extended


class Transformer(nn.Module):
    """Blocks over tokens with learned positions.

    Weights start as PyTorch draws them. GPT-2's 0.02 is far below 1 / sqrt(width) here: with it the loss after 500
    updates on the driven pendulum (20 steps) is 2.7 times as high.
    """

    def __init__(self, width: int, layers: int, heads: int, positions: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(positions, width))
        self.blocks = nn.ModuleList([TransformerBlock(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, token_BNW: torch.Tensor) -> torch.Tensor:
        """All tokens at once: [B, N, W] -> [B, N, W], entry n from tokens 0..n."""
        x = token_BNW + self.position[: token_BNW.shape[1]]
        for block in self.blocks:
            x, _ = block(x, None)
        return self.norm(x)

    def step(
        self, token_BW: torch.Tensor, carry: tuple[int, list[Cache]] | None
    ) -> tuple[torch.Tensor, tuple[int, list[Cache]]]:
        """The next token's output [B, W], and the carry after it; None before the first."""
        n, caches = carry or (0, [])
        x, new_caches = (token_BW + self.position[n])[:, None], []
        for index, block in enumerate(self.blocks):
            x, cache = block(x, caches[index] if caches else None)
            new_caches.append(cache)
        return self.norm(x)[:, 0], (n + 1, new_caches)


def embedding_layer(in_dim: int, width: int) -> nn.Linear:
    """Linear with LeCun-uniform weights, so that unit inputs give unit tokens, and zero bias."""
    layer = nn.Linear(in_dim, width)
    nn.init.uniform_(layer.weight, -math.sqrt(3 / in_dim), math.sqrt(3 / in_dim))
    nn.init.zeros_(layer.bias)
    return layer
