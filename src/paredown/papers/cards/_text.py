"""The language task that cards share: a small decoder on bytes of real text, judged in nats.

Two domains that come with every Python: the language reference (English) and the source of the
standard library.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.workloads.fit import Phase, fit

Domain = Literal["reference", "source"]

CONTEXT = 64
VOCABULARY = 256
MODULES = (
    "argparse",
    "asyncio.base_events",
    "decimal",
    "inspect",
    "pathlib",
    "tarfile",
    "typing",
    "_pydecimal",
)


@cache
def text(domain: Domain) -> Tensor:
    """All bytes of a domain, int64, in a fixed order."""
    if domain == "reference":
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
        whole = "\n".join(topics[k] for k in sorted(topics))
    else:
        whole = "\n".join(inspect.getsource(importlib.import_module(m)) for m in MODULES)
    return torch.tensor(list(whole.encode()), dtype=torch.int64)


def windows(domain: Domain, part: Literal["train", "held-out"]) -> Tensor:
    """``(n, CONTEXT + 1)`` bytes; every eighth window is held out."""
    length = CONTEXT + 1
    every = text(domain)
    every = every[: len(every) // length * length].reshape(-1, length)
    held = torch.arange(len(every)) % 8 == 7
    return every[held if part == "held-out" else ~held]


class Causal(nn.Module):
    """Causal self-attention over ``(batch, tokens, width)``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """To the same shape."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Causal(width, heads)
        self.norm2, self.fc1 = nn.LayerNorm(width), nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, width)`` to the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Decoder(nn.Module):
    """A byte decoder: ``(batch, tokens)`` to logits ``(batch, tokens, 256)``."""

    def __init__(self, width: int, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.place = nn.Parameter(torch.randn(CONTEXT, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)
        nn.init.normal_(self.embed.weight, std=0.05)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of the byte after each."""
        x = self.embed(ids) + self.place[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def nats(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of bytes."""
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def batches(
    domain: Domain, steps: int, size: int
) -> Callable[[], Iterator[tuple[tuple[Tensor], Tensor]]]:
    """``steps`` batches of training windows, drawn from torch's global generator."""
    held = windows(domain, "train")

    def draw() -> Iterator[tuple[tuple[Tensor], Tensor]]:
        for _ in range(steps):
            some = held[torch.randint(len(held), (size,))]
            yield (some[:, :-1],), some[:, 1:]

    return draw


def trained(
    model: nn.Module, domain: Domain, steps: int, size: int, rate: float, seed: int
) -> None:
    """Train in place (AdamW, one cycle) on a domain."""
    fit(model, [Phase(batches(domain, steps, size), 1)], rate=rate, loss=nats, seed=seed)


@torch.no_grad()
def held_out(model: Callable[[Tensor], Tensor], domain: Domain, count: int) -> float:
    """Mean nats a byte on the first ``count`` held-out windows."""
    parts = windows(domain, "held-out")[:count].split(32)
    sums = [float(nats(model(p[:, :-1]), p[:, 1:])) * len(p) for p in parts]
    return sum(sums) / sum(len(p) for p in parts)


@torch.no_grad()
def inject(
    norm: nn.LayerNorm, layers: Sequence[nn.Linear], columns: Sequence[int], factor: float
) -> None:
    """Make columns of a norm's output ``factor`` times larger, in place, the function kept.

    The following weights are divided by as much: what trained transformers of billions of
    parameters have by themselves (Dettmers et al. 2022, section 4).
    """
    index = torch.tensor(list(columns))
    norm.weight[index] *= factor
    norm.bias[index] *= factor
    for layer in layers:
        layer.weight[:, index] /= factor
