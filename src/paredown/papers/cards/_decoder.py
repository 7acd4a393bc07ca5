"""Decoder layers of a language model's shape, written operator by operator: what a card prices."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paredown.cost.serving import LanguageModel
from paredown.graph.capture import capture
from paredown.graph.graph import Graph
from paredown.workload import Workload


class Layer(nn.Module):
    """Norm, rotated queries and keys, attention over a cache, gated MLP; nothing fused.

    Keys and values of the past are inputs ``(batch, heads, context, head_dim)``.
    """

    def __init__(self, hidden: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.RMSNorm(hidden) for _ in range(2))
        self.query, self.key, self.value, self.out = (
            nn.Linear(hidden, hidden, bias=False) for _ in range(4)
        )
        self.gate, self.up = (nn.Linear(hidden, width, bias=False) for _ in range(2))
        self.down = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """One layer over ``x`` (batch, tokens, hidden)."""
        y = self.norms[0](x)
        q, k = (_rotate(self._heads(f(y)), cos, sin) for f in (self.query, self.key))
        keys = torch.cat((keys, k), 2)
        values = torch.cat((values, self._heads(self.value(y))), 2)
        weights = (q @ keys.mT * q.shape[-1] ** -0.5).softmax(-1)
        x = x + self.out((weights @ values).transpose(1, 2).flatten(2))
        y = self.norms[1](x)
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Stack(nn.Module):
    """A few layers one after the other."""

    def __init__(self, model: LanguageModel, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Layer(model.hidden, model.heads, model.width) for _ in range(layers)
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, *cache: Tensor) -> Tensor:
        """``cache`` holds keys and values, layer by layer."""
        for i, layer in enumerate(self.layers):
            x = layer(x, cos, sin, cache[2 * i], cache[2 * i + 1])
        return x


def decoder(
    model: LanguageModel, layers: int, *, tokens: int, context: int, batch: int = 1
) -> Graph:
    """The captured run of ``tokens`` new tokens after ``context`` cached ones, in bfloat16.

    For models with as many KV heads as heads. Allocates no weights.
    """
    with torch.device("meta"):
        net = Stack(model, layers).to(torch.bfloat16).eval()
        x = torch.empty(batch, tokens, model.hidden, dtype=torch.bfloat16)
        angles = torch.empty(tokens, model.head_dim // 2, dtype=torch.bfloat16)
        past = torch.empty(batch, model.heads, context, model.head_dim, dtype=torch.bfloat16)
        cache = tuple(torch.empty_like(past) for _ in range(2 * layers))
    return capture(Workload(net, (x, angles, torch.empty_like(angles), *cache)))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)
