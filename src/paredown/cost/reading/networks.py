"""Small networks that read tokens and say a number: a bag, an LSTM, stacked 1-D convolutions.

ML-driven hardware cost model for MLIR (2023, arXiv:2302.11405) compares the three for hardware
quantities; ONNX-Net (2025, arXiv:2510.04938) trains a pretrained encoder to rank by accuracy with a
pairwise margin (0.1). Sizes beyond the embedding's 64 could not be looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from paredown.cost.reading.tokens import PAD, Vocabulary
from paredown.errors import InputError

WIDTH = 64


class Bag(nn.Module):
    """The mean of the embeddings, then two dense layers."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, WIDTH, padding_idx=PAD)
        self.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(texts, length) to (texts)."""
        there = (x != PAD).float()
        mean = self.embed(x).sum(1) / there.sum(1, keepdim=True).clamp(min=1)
        return self.head(mean)[:, 0]


class Recurrent(nn.Module):
    """An LSTM; its state behind the last word, then a dense layer."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, WIDTH, padding_idx=PAD)
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(texts, length) to (texts)."""
        last = (x != PAD).sum(1).clamp(min=1) - 1
        states, _ = self.lstm(self.embed(x))
        return self.head(states[torch.arange(len(x)), last])[:, 0]


class Convolved(nn.Module):
    """Convolutions over the words, each halving them by maxima; maximum and mean, dense layers."""

    def __init__(self, words: int, kernels: Sequence[int] = (8, 4, 4)) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, WIDTH, padding_idx=PAD)
        self.convs = nn.ModuleList([nn.Conv1d(WIDTH, WIDTH, k, padding=k // 2) for k in kernels])
        self.head = nn.Sequential(nn.Linear(2 * WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(texts, length) to (texts)."""
        h = self.embed(x).transpose(1, 2)
        for conv in self.convs:
            h = F.max_pool1d(torch.relu(conv(h)), 2, ceil_mode=True)
        return self.head(torch.cat([h.amax(2), h.mean(2)], 1))[:, 0]


KINDS: dict[str, Callable[[int], nn.Module]] = {
    "bag": Bag,
    "lstm": Recurrent,
    "conv1d": Convolved,
}


class Reader:
    """A vocabulary and a network on it; ``loss`` is the square of the error, or the order."""

    def __init__(self, kind: str, *, loss: Literal["square", "rank"] = "square") -> None:
        if kind not in KINDS:
            raise InputError(f"readers are {', '.join(KINDS)}, not {kind!r}")
        self.kind, self.loss = kind, loss

    def fit(
        self,
        texts: Sequence[Sequence[str]],
        labels: Sequence[float],
        *,
        epochs: int = 60,
        seed: int = 0,
        rate: float = 3e-3,
    ) -> Reader:
        """Learn labels of token sequences; the same for the same seed."""
        if len(texts) < 3 or len(texts) != len(labels):
            raise InputError(f"{len(texts)} texts and {len(labels)} labels: three of each at least")
        torch.manual_seed(seed)
        self.vocabulary = Vocabulary.of(texts)
        self.net = KINDS[self.kind](len(self.vocabulary))
        x = torch.from_numpy(self.vocabulary.encoded(texts))
        y = torch.tensor(np.asarray(labels), dtype=torch.float32)
        self.mean, self.scale = float(y.mean()), float(y.std()) or 1.0
        y = (y - self.mean) / self.scale
        size = 32
        optimizer = torch.optim.AdamW(self.net.parameters(), rate, weight_decay=0.01)
        steps = epochs * -(-len(x) // size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
        self.net.train()
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(size):
                said = self.net(x[rows])
                error = (
                    F.mse_loss(said, y[rows]) if self.loss == "square" else ranked(said, y[rows])
                )
                optimizer.zero_grad()
                error.backward()
                optimizer.step()
                schedule.step()
        self.net.eval()
        return self

    def predict(self, texts: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """One value per text; with ``rank`` only their order means something."""
        with torch.inference_mode():
            said = self.net(torch.from_numpy(self.vocabulary.encoded(texts)))
        return said.double().numpy() * self.scale + self.mean


def ranked(said: Tensor, labels: Tensor, margin: float = 0.1) -> Tensor:
    """Mean hinge over pairs of a batch whose labels differ: the better one is above by a margin."""
    more = labels[:, None] > labels[None, :]
    gaps = F.relu(margin - (said[:, None] - said[None, :]))
    return (gaps * more).sum() / more.sum().clamp(min=1)
