"""FasterNet: partial convolutions, then pointwise ones (Chen et al. 2023, arXiv:2303.03667)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from paredown.errors import UnknownName
from paredown.nn.act import Activation, gelu, relu
from paredown.nn.conv import ConvNormAct
from paredown.nn.drop import drop_path, rising_rates
from paredown.nn.features import need_size, tapped
from paredown.nn.init import small_init
from paredown.nn.partial import PartialConv

# Width of the first stage, depths, activation (table 7 of the appendix).
VARIANTS: dict[str, tuple[int, tuple[int, ...], Activation]] = {
    "t0": (40, (1, 2, 8, 2), gelu),
    "t1": (64, (1, 2, 8, 2), gelu),
    "t2": (96, (1, 2, 8, 2), relu),
    "s": (128, (1, 2, 13, 2), relu),
    "m": (144, (3, 4, 18, 3), relu),
    "l": (192, (3, 4, 18, 3), relu),
}


class FasterNetBlock(nn.Module):
    """Partial 3x3, 1x1 to ``ratio`` times the width, norm, activation, 1x1 back; a residual."""

    def __init__(
        self,
        channels: int,
        *,
        ratio: float = 2,
        share: float = 0.25,
        act: Activation = relu,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = int(channels * ratio)
        self.mixer = PartialConv(channels, share=share)
        self.expand = ConvNormAct(channels, hidden, act=act)
        self.project = nn.Conv2d(hidden, channels, 1, bias=False)
        self.drop = drop_path(drop)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        return x + self.drop(self.project(self.expand(self.mixer(x))))


class Pyramid(nn.Module):
    """FasterNet's skeleton: stages of blocks, each behind a merging convolution; a pooled head.

    ``(batch, in_channels, h, w)`` to logits ``(batch, num_classes)``, or with ``features_only`` to
    the stages' outputs. ``block`` makes a block of a stage: ``(stage, channels, drop)``.
    """

    def __init__(
        self,
        width: int,
        depths: Sequence[int],
        num_classes: int,
        in_channels: int,
        *,
        block: Callable[[int, int, float], nn.Module],
        features: int,
        act: Activation,
        drop: float,
        features_only: bool,
    ) -> None:
        super().__init__()
        self.least = 4 * 2 ** (len(depths) - 1)
        rates = iter(rising_rates(drop, sum(depths)))
        stages: list[nn.Module] = []
        channels = in_channels
        for i, depth in enumerate(depths):
            outputs, step = width * 2**i, 2 if i else 4
            merge = ConvNormAct(channels, outputs, step, stride=step, padding=0, act=None)
            blocks = (block(i, outputs, next(rates)) for _ in range(depth))
            stages.append(nn.Sequential(merge, *blocks))
            channels = outputs
        self.stages = nn.Sequential(*stages)
        self.head = None
        if not features_only:
            self.head = nn.Sequential(
                nn.AdaptiveAvgPool2d(1),
                nn.Conv2d(channels, features, 1, bias=False),
                act(),
                nn.Flatten(1),
                nn.Linear(features, num_classes),
            )
        self.apply(small_init)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to logits, or to the stages' outputs."""
        need_size(x, network=type(self).__name__, minimum=self.least)
        if self.head is None:
            return tapped(self.stages, x, range(len(self.stages)))
        return self.head(self.stages(x))


class FasterNet(Pyramid):
    """FasterNet for ``(batch, in_channels, h, w)`` images of sides 32 or more.

    Returns logits ``(batch, num_classes)``, or with ``features_only`` the outputs of the four
    stages (strides 4 to 32). Every stage doubles ``width``; ``share`` of the channels is convolved.
    """

    def __init__(
        self,
        width: int = 40,
        depths: Sequence[int] = (1, 2, 8, 2),
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        ratio: float = 2,
        share: float = 0.25,
        features: int = 1280,
        act: Activation = relu,
        drop: float = 0.0,
        features_only: bool = False,
    ) -> None:

        def block(_: int, channels: int, rate: float) -> nn.Module:
            return FasterNetBlock(channels, ratio=ratio, share=share, act=act, drop=rate)

        super().__init__(
            width,
            depths,
            num_classes,
            in_channels,
            block=block,
            features=features,
            act=act,
            drop=drop,
            features_only=features_only,
        )


def fasternet(
    variant: str = "t0", num_classes: int = 1000, in_channels: int = 3, **settings: Any
) -> FasterNet:
    """A published variant: t0, t1, t2, s, m or l. Raises ``UnknownName`` for another."""
    if variant not in VARIANTS:
        raise UnknownName("FasterNet", variant, list(VARIANTS))
    width, depths, act = VARIANTS[variant]
    settings = {"act": act, **settings}
    return FasterNet(width, depths, num_classes, in_channels, **settings)
