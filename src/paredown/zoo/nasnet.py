"""NASNet-A: two searched cells, stacked (Zoph et al. 2017, arXiv:1707.07012, figure 4, A.4).

Deviation: strided operations pad symmetrically, where TensorFlow's "SAME" pads one more pixel
after than before; counts are equal.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paredown.errors import InputError, UnknownName
from paredown.nn.conv import classifier
from paredown.nn.drop import DropPath
from paredown.nn.features import need_size

# Cells per resolution, filters of the last cell's output, stem filters, image size, classes.
VARIANTS: dict[str, tuple[int, int, int, int, int]] = {
    "mobile": (4, 1056, 32, 224, 1000),
    "a-7@1920": (7, 1920, 96, 299, 1000),
    "large": (6, 4032, 96, 331, 1000),
    "cifar-6@768": (6, 768, 96, 32, 10),
    "cifar-7@2304": (7, 2304, 288, 32, 10),
}
EPS, MOMENTUM = 1e-3, 0.1


def norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm as in the paper's code."""
    return nn.BatchNorm2d(channels, eps=EPS, momentum=MOMENTUM)


class Separable(nn.Sequential):
    """ReLU, depthwise, 1x1, batch norm, applied twice (section 3.2); the stride is the first's."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        layers: list[nn.Module] = []
        for i, channels in enumerate((inputs, outputs)):
            layers += [
                nn.ReLU(),
                nn.Conv2d(
                    channels,
                    channels,
                    kernel,
                    1 if i else stride,
                    kernel // 2,
                    groups=channels,
                    bias=False,
                ),
                nn.Conv2d(channels, outputs, 1, bias=False),
                norm(outputs),
            ]
        super().__init__(*layers)


class Project(nn.Sequential):
    """ReLU, 1x1 convolution, batch norm: a cell's input brought to its filters."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False), norm(outputs))


class FactorizedReduction(nn.Module):
    """A map twice too large, halved by two 1x1 paths one pixel apart, each half of the filters."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.even = nn.Conv2d(inputs, outputs // 2, 1, bias=False)
        self.odd = nn.Conv2d(inputs, outputs - outputs // 2, 1, bias=False)
        self.norm = norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, h, w)`` to ``(batch, outputs, ceil(h / 2), ceil(w / 2))``."""
        x = self.act(x)
        # The odd path starts one pixel later; past the border it reads zeros.
        shifted = nn.functional.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        even, odd = self.even(x[:, :, ::2, ::2]), self.odd(shifted[:, :, ::2, ::2])
        return self.norm(torch.cat((even, odd), 1))


def average(stride: int = 1) -> nn.AvgPool2d:
    """3x3 average pool that does not count its padding."""
    return nn.AvgPool2d(3, stride, 1, count_include_pad=False)


class Cell(nn.Module):
    """What both cells share: the two inputs, projected to ``filters``; drop path on operations.

    ``now`` and ``before`` are the channels of the last two cells' outputs; ``shrink`` says that
    the older is twice as large. ``before`` is not projected where ``raw`` (the first stem cell).
    """

    def __init__(
        self, now: int, before: int, filters: int, *, shrink: bool, raw: bool, drop: float
    ) -> None:
        super().__init__()
        self.now = Project(now, filters)
        self.before: nn.Module = nn.Identity()
        if not raw:
            fit = FactorizedReduction if shrink else Project
            self.before = fit(before, filters)
        self.drop = DropPath(drop)


class NormalCell(Cell):
    """NASNet-A's normal cell: six times its filters out, at the same resolution (figure 4)."""

    def __init__(
        self, now: int, before: int, filters: int, *, shrink: bool = False, drop: float = 0.0
    ) -> None:
        super().__init__(now, before, filters, shrink=shrink, raw=False, drop=drop)
        f = filters
        self.wide_now, self.near_before = Separable(f, f, 5), Separable(f, f, 3)
        self.wide_before, self.near_before2 = Separable(f, f, 5), Separable(f, f, 3)
        self.near_now = Separable(f, f, 3)
        self.pool = average()
        self.outputs = 6 * f

    def forward(self, now: Tensor, before: Tensor) -> Tensor:
        """The two last outputs to ``(batch, 6 * filters, h, w)``."""
        a, b, drop = self.now(now), self.before(before), self.drop
        pooled = self.pool(b)
        return torch.cat(
            (
                b,
                drop(self.wide_now(a)) + drop(self.near_before(b)),
                drop(self.wide_before(b)) + drop(self.near_before2(b)),
                drop(self.pool(a)) + b,
                drop(pooled) + drop(pooled),
                drop(self.near_now(a)) + a,
            ),
            1,
        )


class ReductionCell(Cell):
    """NASNet-A's reduction cell: four times its filters out, at half the resolution (figure 4)."""

    def __init__(
        self,
        now: int,
        before: int,
        filters: int,
        *,
        shrink: bool = False,
        raw: bool = False,
        drop: float = 0.0,
    ) -> None:
        super().__init__(now, before, filters, shrink=shrink, raw=raw, drop=drop)
        f, other = filters, before if raw else filters
        self.wide_now, self.widest_before = Separable(f, f, 5, 2), Separable(other, f, 7, 2)
        self.widest_before2, self.wide_before = Separable(other, f, 7, 2), Separable(other, f, 5, 2)
        self.near = Separable(f, f, 3)
        self.largest, self.mean, self.pool = nn.MaxPool2d(3, 2, 1), average(2), average()
        self.outputs = 4 * f

    def forward(self, now: Tensor, before: Tensor) -> Tensor:
        """The two last outputs to ``(batch, 4 * filters, ceil(h / 2), ceil(w / 2))``."""
        a, b, drop = self.now(now), self.before(before), self.drop
        first = drop(self.wide_now(a)) + drop(self.widest_before(b))
        largest = drop(self.largest(a))
        second = largest + drop(self.widest_before2(b))
        return torch.cat(
            (
                second,
                drop(self.mean(a)) + drop(self.wide_before(b)),
                drop(self.pool(first)) + second,
                drop(self.near(first)) + largest,
            ),
            1,
        )


class NASNet(nn.Module):
    """NASNet-A for ``(batch, in_channels, h, w)`` images, logits ``(batch, num_classes)``.

    ``cells`` normal cells stand at each of three resolutions; the last puts out ``filters``, a
    multiple of 24. ``imagenet`` has an unpadded strided stem and two stem reductions (sides of 3
    or more), else a 3x3 stem. With ``past`` the cell behind a reduction reads past it: its older
    input is the reduction's older one, as in the released large network. ``drop`` is
    ScheduledDropPath's rate of the last cell, at the end of training: earlier cells have
    proportionally less; :meth:`schedule` sets the time's share. With ``features_only`` the maps at
    the end of each resolution.
    """

    def __init__(
        self,
        cells: int = 4,
        filters: int = 1056,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        stem: int = 32,
        imagenet: bool = True,
        past: bool = False,
        drop: float = 0.0,
        dropout: float = 0.0,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        if filters % 24:
            raise InputError(
                f"filters must be a multiple of 24 (six times a quarter), got {filters}"
            )
        base = filters // 24
        self.imagenet = imagenet
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, stem, 3, 2 if imagenet else 1, 0 if imagenet else 1, bias=False),
            norm(stem),
        )
        plan: list[tuple[bool, int]] = [(True, base // 4), (True, base // 2)] if imagenet else []
        for i in range(3):
            plan += [(True, base * 2**i)] if i else []
            plan += [(False, base * 2**i)] * cells
        now = before = stem
        shrink, built, self.ends = False, [], list[int]()
        self.past = [past and reduces and i > 1 for i, (reduces, _) in enumerate(plan)]
        for i, (reduces, f) in enumerate(plan):
            rate = drop * (i + 1) / len(plan)
            if reduces:
                raw = imagenet and i == 0
                cell = ReductionCell(now, before, f, shrink=shrink, raw=raw, drop=rate)
                if i > (1 if imagenet else 0):
                    self.ends.append(i - 1)
            else:
                cell = NormalCell(now, before, f, shrink=shrink, drop=rate)
            built.append(cell)
            before, now, shrink = before if self.past[i] else now, cell.outputs, reduces
        self.ends.append(len(plan) - 1)
        self.cells = nn.ModuleList(built)
        self.rates = [c.drop.rate for c in built]
        self.act = nn.ReLU()
        self.head = None if features_only else classifier(now, num_classes, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to logits, or to the features at the end of each resolution."""
        need_size(x, network="NASNet", minimum=3 if self.imagenet else 1)
        now = before = self.stem(x)
        maps: list[Tensor] = []
        for i, cell in enumerate(self.cells):
            now, before = cell(now, before), before if self.past[i] else now
            if i in self.ends:
                maps.append(now)
        return maps if self.head is None else self.head(self.act(now))

    def schedule(self, share: float) -> None:
        """Set drop path for this share of the training steps done, 0 to 1 (A.4)."""
        if not 0 <= share <= 1:
            raise InputError(f"the share of training done lies in [0, 1], got {share}")
        for cell, rate in zip(self.cells, self.rates, strict=True):
            assert isinstance(cell, Cell)
            cell.drop.rate = rate * share


def nasnet(
    variant: str = "mobile",
    num_classes: int | None = None,
    in_channels: int = 3,
    *,
    drop: float = 0.0,
    dropout: float = 0.0,
    features_only: bool = False,
) -> NASNet:
    """A published network (``VARIANTS``): mobile is A (4 @ 1056), large A (6 @ 4032).

    Classes are those of its data set unless given. Raises ``UnknownName`` for another variant.
    """
    if variant not in VARIANTS:
        raise UnknownName("NASNet-A", variant, list(VARIANTS))
    cells, filters, stem, side, classes = VARIANTS[variant]
    return NASNet(
        cells,
        filters,
        classes if num_classes is None else num_classes,
        in_channels,
        stem=stem,
        imagenet=side > 32,
        past=variant == "large",
        drop=drop,
        dropout=dropout,
        features_only=features_only,
    )


__all__ = ["NASNet", "NormalCell", "ReductionCell", "nasnet"]
