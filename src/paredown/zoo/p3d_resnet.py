"""Pseudo-3-D ResNet: 3x3x3 as 1x3x3 in space and 3x1x1 in time (Qiu et al. 2017, arXiv:1711.10305).

Layout of the public port that the authors' weights were carried to (qijiezhao/pseudo-3d-pytorch).
Deviation: clips longer than 16 frames are taken too; what the temporal pools leave of them goes
through the last stage frame by frame, and the frames' features are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from paredown.errors import InputError, UnknownName
from paredown.nn.act import relu
from paredown.nn.conv import ConvNormAct, he_init
from paredown.nn.conv3d import ConvNormAct3d
from paredown.nn.features import need_volume

Wiring = Literal["A", "B", "C"]

# Layers of the paper -> blocks per stage (those of ResNet-50, 101 and 152).
DEPTHS: dict[int, tuple[int, int, int, int]] = {
    63: (3, 4, 6, 3),
    131: (3, 4, 23, 3),
    199: (3, 8, 36, 3),
}
EXPAND = 4
FRAMES = 16
"""Frames that the four temporal poolings bring to one."""


class PseudoConv3d(nn.Module):
    """Space and time apart (section 3.2, figure 2): with S spatial and T temporal,

    A is ``T(S(x))``, B is ``S(x) + T(x)``, C is ``S(x) + T(S(x))``. Both have norm and ReLU.
    """

    def __init__(self, channels: int, wiring: Wiring) -> None:
        super().__init__()
        self.wiring = wiring
        self.spatial = ConvNormAct3d(channels, channels, (1, 3, 3))
        self.temporal = ConvNormAct3d(channels, channels, (3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, frames, h, w)`` to the same shape."""
        space = self.spatial(x)
        if self.wiring == "A":
            return self.temporal(space)
        return space + self.temporal(x if self.wiring == "B" else space)


class PseudoBottleneck(nn.Module):
    """1x1 down (strided), a unit, 1x1 up around a skip; ``make`` makes 2-D or 3-D convolutions."""

    def __init__(
        self,
        inputs: int,
        inner: int,
        unit: nn.Module,
        make: Callable[..., nn.Module],
        *,
        stride: int | tuple[int, int, int] = 1,
    ) -> None:
        super().__init__()
        outputs = EXPAND * inner
        self.reduce = make(inputs, inner, stride=stride)
        self.unit = unit
        self.expand = make(inner, outputs, act=None)
        self.skip = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else make(inputs, outputs, stride=stride, act=None)
        )
        self.act = relu()

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, ..., h, w)`` to ``4 * inner`` channels at the stride."""
        return self.act(self.expand(self.unit(self.reduce(x))) + self.skip(x))


class P3DResNet(nn.Module):
    """For clips ``(batch, in_channels, frames, h, w)`` of at least 16 frames, of any h and w.

    ``blocks`` per stage; ``wirings`` of the pseudo-3-D units are cycled through the blocks. The
    first three stages have these units, each with a pooling of two frames behind; the last is 2-D.
    Returns logits ``(batch, num_classes)``, or with ``features_only`` the stages' outputs before
    their pooling (strides 4 to 32). ``InputError`` for fewer frames.
    """

    def __init__(
        self,
        blocks: Sequence[int] = DEPTHS[63],
        num_classes: int = 400,
        in_channels: int = 3,
        *,
        width: int = 64,
        wirings: Sequence[Wiring] = ("A", "B", "C"),
        dropout: float = 0.5,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        unknown = sorted(set(wirings) - {"A", "B", "C"})
        if unknown or not wirings:
            raise InputError(f"wirings are A, B or C, got {', '.join(unknown) or 'none'}")
        self.stem = ConvNormAct3d(in_channels, width, (1, 7, 7), stride=(1, 2, 2))
        self.pool = nn.MaxPool3d((2, 3, 3), 2, (0, 1, 1))
        self.pool_frames = nn.MaxPool3d((2, 1, 1))
        channels, count = width, 0
        stages: list[nn.Module] = []
        for i, depth in enumerate(blocks[:-1]):
            inner, stage = width * 2**i, list[nn.Module]()
            for j in range(depth):
                stride = (1, 2, 2) if i and j == 0 else 1
                unit = PseudoConv3d(inner, wirings[count % len(wirings)])
                stage.append(PseudoBottleneck(channels, inner, unit, ConvNormAct3d, stride=stride))
                channels, count = EXPAND * inner, count + 1
            stages.append(nn.Sequential(*stage))
        self.stages = nn.ModuleList(stages)
        inner, last = width * 2 ** (len(blocks) - 1), list[nn.Module]()
        for j in range(blocks[-1]):
            unit = ConvNormAct(inner, inner, 3)
            stride = 1 if j else 2
            last.append(PseudoBottleneck(channels, inner, unit, ConvNormAct, stride=stride))
            channels = EXPAND * inner
        self.last = nn.Sequential(*last)
        self.head = (
            None
            if features_only
            else nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, num_classes))
        )
        he_init(self)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Clips to logits, or to the stages' outputs."""
        need_volume(x, network="P3D ResNet", minimum=(FRAMES, 1, 1))
        x, maps = self.pool(self.stem(x)), list[Tensor]()
        for stage in self.stages:
            maps.append(stage(x))
            x = self.pool_frames(maps[-1])
        batch, channels, frames, high, wide = x.shape
        x = x.transpose(1, 2).reshape(batch * frames, channels, high, wide)
        x = self.last(x).unflatten(0, (batch, frames)).transpose(1, 2)
        return [*maps, x] if self.head is None else self.head(x.mean((2, 3, 4)))


def p3d_resnet(
    layers: int = 63, num_classes: int = 400, in_channels: int = 3, **settings: Any
) -> P3DResNet:
    """A published depth: 63, 131 or 199. Raises ``UnknownName`` for another."""
    if layers not in DEPTHS:
        raise UnknownName("P3D ResNet", str(layers), [str(d) for d in DEPTHS])
    return P3DResNet(DEPTHS[layers], num_classes, in_channels, **settings)
