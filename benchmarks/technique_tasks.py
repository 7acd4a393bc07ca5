"""Tasks of the techniques' benchmark: bytes of Python's own sources, and a generator's reader.

They come with every Python and scikit-learn; nothing is fetched. A task's held-out part splits in
two: the first guides a search (`evaluate`), the second decides (`verify`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.papers.cards import _text
from paredown.workload import TrainingData, Workload
from paredown.workloads import digits

SOURCES = (
    "pydoc_data.topics",
    "_pydecimal",
    "argparse",
    "asyncio.base_events",
    "tarfile",
    "unittest.mock",
)
"""Whose bytes a window is of: the encoder's classes."""
LENGTH = 96
EVALUATED, VERIFIED = 80, 120
"""Windows of each class."""
CALIBRATION = 128


@cache
def source(name: str) -> Tensor:
    """A module's own source as bytes, int64; it is not imported."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return torch.tensor(list(Path(spec.origin).read_bytes()), dtype=torch.int64)


@cache
def stretches(name: str) -> tuple[Tensor, Tensor]:
    """A source in turns: ``(n, 3 * LENGTH)`` to train on, ``(n, LENGTH)`` held out, shuffled."""
    turns = source(name)
    turns = turns[: len(turns) // (4 * LENGTH) * 4 * LENGTH].reshape(-1, 4 * LENGTH)
    order = torch.randperm(len(turns), generator=torch.Generator().manual_seed(5))
    return turns[:, : 3 * LENGTH], turns[order, 3 * LENGTH :]


def labelled(first: int, count: int) -> tuple[Tensor, Tensor]:
    """``count`` held-out windows of every class from the ``first`` on, and their classes."""
    windows = [stretches(n)[1][first : first + count] for n in SOURCES]
    labels = [torch.full((len(w),), i) for i, w in enumerate(windows)]
    return torch.cat(windows), torch.cat(labels)


class Windows:
    """Epochs of ``steps`` batches of training windows at random offsets, classes at random.

    Seeded from torch's global generator.
    """

    def __init__(self, steps: int = 20, batch: int = 48) -> None:
        self.steps, self.batch = steps, batch

    def __call__(self) -> Iterator[tuple[tuple[Tensor], Tensor]]:
        generator = torch.Generator().manual_seed(int(torch.randint(2**31 - 1, ())))

        def below(n: int) -> int:
            return int(torch.randint(n, (), generator=generator))

        for _ in range(self.steps):
            labels = torch.randint(len(SOURCES), (self.batch,), generator=generator)
            rows: list[Tensor] = []
            for label in labels.tolist():
                turns, at = stretches(SOURCES[label])[0], below(2 * LENGTH)
                rows.append(turns[below(len(turns)), at : at + LENGTH])
            yield (torch.stack(rows),), labels


class TopTwo(digits.Accuracy):
    """Whether the class is among the two likeliest, 0 or 1 each: the first alone is too hard."""

    def __call__(self, model: nn.Module) -> Tensor:
        pairs = self._predict(model)
        return torch.cat(
            [(x.float().topk(2).indices == y[:, None]).any(1).float() for x, y in pairs]
        )


def which_source(model: nn.Module) -> Workload:
    """An encoder ``(batch, LENGTH)`` bytes to ``(batch, classes)``; scored by `TopTwo`."""
    torch.manual_seed(3)
    (calibration,), _ = next(Windows(1, CALIBRATION)())
    judged = labelled(0, EVALUATED)
    return Workload(
        model.eval(),
        (judged[0][:1].clone(),),
        name="encoder",
        calibration=list(calibration.split(1)),
        evaluate=TopTwo(*judged),
        verify=TopTwo(*labelled(EVALUATED, VERIFIED)),
        training=TrainingData(Windows(), F.cross_entropy),
        scale=1.0,
    )


class BitProbability:
    """``2 ** (-bits per byte / 8)`` of each window: the mean probability given to a bit of it.

    A transform of bits per byte that lies in 0..1: 0.80 is 2.6 bits per byte, 0.95 is 0.6.
    """

    def __init__(self, windows: Tensor) -> None:
        self.windows = windows

    def __call__(self, model: nn.Module) -> Tensor:
        found: list[Tensor] = []
        for part in self.windows.split(32):
            loss = F.cross_entropy(model(part[:, :-1]).float().mT, part[:, 1:], reduction="none")
            found.append(torch.exp(-loss.mean(1) / 8))
        return torch.cat(found)


def next_byte(model: nn.Module) -> Workload:
    """A decoder on the language reference's English, windows of 64 bytes; by `BitProbability`."""
    held, train = (_text.windows("reference", p) for p in ("held-out", "train"))
    generator = torch.Generator().manual_seed(4)
    pick = torch.randperm(len(held), generator=generator)
    calibration = train[torch.randperm(len(train), generator=generator)[:CALIBRATION], :-1]
    return Workload(
        model.eval(),
        (held[pick[:1], :-1].clone(),),
        name="decoder",
        calibration=list(calibration.split(1)),
        evaluate=BitProbability(held[pick[:300]]),
        verify=BitProbability(held[pick[300:900]]),
        training=TrainingData(_text.batches("reference", 20, 48), _text.nats),
        scale=1.0,
    )


CODE, CLASSES, SIDE = 32, digits.CLASSES, 32
TEMPERATURE = 2.0
"""Deviation of the codes that are judged."""


def codes(count: int, seed: int, temperature: float = TEMPERATURE) -> tuple[Tensor, Tensor]:
    """``(count, CODE + CLASSES)`` normal codes beside the class asked for, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    code = torch.randn(count, CODE, generator=generator) * temperature
    return torch.cat((code, F.one_hot(labels, CLASSES).float()), 1), labels


@cache
def reader() -> Any:
    """A support vector machine on the 1077 scans that no generator has seen."""
    from sklearn.svm import SVC

    images, labels = digits.scans()
    rest = slice(digits.TRAIN, None)
    return SVC(C=10, gamma=0.02).fit(images[rest].flatten(1).numpy(), labels[rest].numpy())


class ReadRight:
    """Whether the reader sees in a drawn digit the class that was asked for, 0 or 1 each."""

    def __init__(self, asked: Sequence[Tensor]) -> None:
        self.codes, self.labels = asked

    def __call__(self, model: nn.Module) -> Tensor:
        drawn = torch.cat([model(part) for part in self.codes.split(64)]).float()
        small = F.avg_pool2d((drawn.clamp(-1, 1) + 1) / 2, SIDE // 8).flatten(1)
        return torch.from_numpy(reader().predict(small.numpy()) == self.labels.numpy()).float()


class Codes:
    """Batches of new codes to distil a generator on; the target is no label."""

    def __init__(self, steps: int = 20, batch: int = 48) -> None:
        self.steps, self.batch = steps, batch

    def __call__(self) -> Iterator[tuple[tuple[Tensor], Tensor]]:
        for _ in range(self.steps):
            drawn = codes(self.batch, int(torch.randint(2**31 - 1, ())))[0]
            yield (drawn,), drawn


def drawn_digits(model: nn.Module) -> Workload:
    """A generator of codes ``(batch, 42)`` to digits ``(batch, 1, 32, 32)``; by `ReadRight`."""
    calibration = codes(CALIBRATION, 6)[0]
    return Workload(
        model.eval(),
        (calibration[:1].clone(),),
        name="generator",
        calibration=list(calibration.split(1)),
        evaluate=ReadRight(codes(500, 7)),
        verify=ReadRight(codes(1000, 8)),
        training=TrainingData(Codes()),
        scale=1.0,
    )
