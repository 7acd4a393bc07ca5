"""Multi-head latent attention: keys and values come from one small latent per token, cached alone.

DeepSeek-V2 (2024, arXiv:2405.04434, section 2.1, equations 9 to 19 and 37 to 47); its bytes per
token are those of Insights into DeepSeek-V3 (arXiv:2505.09343, table 1). Decoding multiplies the
queries by the keys' up-projection instead of making keys of the whole cache: "absorbed".

Deviations: queries are projected at once (no query latent); latents are not normalised.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def rotate(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary position embedding of ``x`` (batch, heads, tokens, even width) by halves."""
    half = x.shape[-1] // 2
    rates = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = positions.float()[:, None] * rates
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


class LatentAttention(nn.Module):
    """Causal attention over ``(batch, tokens, hidden)`` whose cache is ``kv_rank + rope_dim`` wide.

    ``forward`` makes keys and values of every token; ``decode`` works on the cached latents.
    """

    def __init__(
        self, hidden: int, heads: int, kv_rank: int, rope_dim: int, nope_dim: int, value_dim: int
    ) -> None:
        super().__init__()
        self.heads, self.kv_rank, self.rope_dim = heads, kv_rank, rope_dim
        self.nope_dim, self.value_dim = nope_dim, value_dim
        self.query = nn.Linear(hidden, heads * (nope_dim + rope_dim), bias=False)
        self.down = nn.Linear(hidden, kv_rank + rope_dim, bias=False)
        self.up = nn.Linear(kv_rank, heads * (nope_dim + value_dim), bias=False)
        self.out = nn.Linear(heads * value_dim, hidden, bias=False)
        self.scale = (nope_dim + rope_dim) ** -0.5

    def latents(self, x: Tensor, start: int = 0) -> Tensor:
        """What is cached of ``x``: ``(batch, tokens, kv_rank + rope_dim)``, keys rotated."""
        at = torch.arange(start, start + x.shape[1], device=x.device)
        content, shared = self.down(x).split((self.kv_rank, self.rope_dim), -1)
        return torch.cat((content, rotate(shared[:, None], at)[:, 0]), -1)

    def forward(self, x: Tensor) -> Tensor:
        """Attention over the whole of ``x``, keys and values written out."""
        batch, tokens = x.shape[:2]
        content, shared = self.latents(x).split((self.kv_rank, self.rope_dim), -1)
        made = self._heads(self.up(content), self.nope_dim + self.value_dim)
        keys, values = made.split((self.nope_dim, self.value_dim), -1)
        plain, turned = self._queries(x, 0)
        scores = plain @ keys.mT + turned @ shared[:, None].mT
        past = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).tril()
        weights = (scores * self.scale).masked_fill(~past, -torch.inf).softmax(-1)
        return self.out((weights @ values).transpose(1, 2).reshape(batch, tokens, -1))

    def decode(self, x: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """The next token ``x`` (batch, 1, hidden) after the ``cache`` of latents; the longer cache.

        No keys or values of the past are made: queries meet the latents, and so do the weights.
        """
        plain, turned = self._queries(x, cache.shape[1])
        cache = torch.cat((cache, self.latents(x, cache.shape[1])), 1)
        content, shared = cache[:, None].split((self.kv_rank, self.rope_dim), -1)
        up = self.up.weight.view(self.heads, self.nope_dim + self.value_dim, self.kv_rank)
        for_keys, for_values = up.split((self.nope_dim, self.value_dim), 1)
        scores = (plain @ for_keys) @ content.mT + turned @ shared.mT
        weights = (scores * self.scale).softmax(-1)
        mixed = (weights @ content) @ for_values.mT
        return self.out(mixed.transpose(1, 2).reshape(x.shape[0], 1, -1)), cache

    def _queries(self, x: Tensor, start: int) -> tuple[Tensor, Tensor]:
        made = self._heads(self.query(x), self.nope_dim + self.rope_dim)
        plain, turned = made.split((self.nope_dim, self.rope_dim), -1)
        at = torch.arange(start, start + x.shape[1], device=x.device)
        return plain, rotate(turned, at)

    def _heads(self, x: Tensor, width: int) -> Tensor:
        return x.view(*x.shape[:2], self.heads, width).transpose(1, 2)
