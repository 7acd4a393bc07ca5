"""SimpleNet: 13 plain convolutions by design rules (Hasanpour et al. 2016, arXiv:1608.06037).

The layouts are those of the authors' repository, which also corrects the CIFAR network's pooling:
there is none between the 512 and the 2048 filters.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from paredown.errors import InputError, UnknownName
from paredown.nn.features import need_size, tapped

# One group between two max-pools: output channels of its convolutions, negative where 1x1.
Groups = tuple[tuple[int, ...], ...]

IMAGENET: Groups = ((64, 128, 128, 128, 128, 128), (256, 256, 256, 512), (-2048, -256, 256))
IMAGENET_WIDE: Groups = ((128, 192, 192, 192, 192, 192), (320, 320, 320, 640), (-2560, -320, 320))

# Groups, width multiplier, strides of the first convolutions, classes of the table's entry.
VARIANTS: dict[str, tuple[Groups, float, tuple[int, ...], int]] = {
    "cifar-5m": (
        ((64, 128, 128, 128), (128, 128, 256), (256, 256), (512, -2048, -256), (256,)),
        1.0,
        (),
        10,
    ),
    "cifar-310k": (
        ((64, 32, 32, 32), (32, 32, 64), (64, 64), (128, -256, -64), (64,)),
        1.0,
        (),
        10,
    ),
    "cifar-460k": (
        ((32, 32, 32, 64), (64, 64, 64), (64, 64), (96, -96, -96), (100,)),
        1.0,
        (),
        10,
    ),
    "small-0.5-m1": (IMAGENET, 0.5, (2, 2, 2), 1000),
    "small-0.5-m2": (IMAGENET, 0.5, (2, 2, 1, 2), 1000),
    "small-0.75-m1": (IMAGENET, 0.75, (2, 2, 2), 1000),
    "small-0.75-m2": (IMAGENET, 0.75, (2, 2, 1, 2), 1000),
    "5m-m1": (IMAGENET, 1.0, (2, 2, 2), 1000),
    "5m-m2": (IMAGENET, 1.0, (2, 2, 1, 2), 1000),
    "9m-m1": (IMAGENET_WIDE, 1.0, (2, 2, 2), 1000),
    "9m-m2": (IMAGENET_WIDE, 1.0, (2, 2, 1, 2), 1000),
}


class SimpleNet(nn.Module):
    """SimpleNet for ``(batch, in_channels, h, w)`` images, logits ``(batch, num_classes)``.

    ``groups`` are the widths between max-pools (negative: a 1x1 convolution), ``strides`` those of
    the first convolutions (ones after). ``dropout`` follows every pool (the paper's SAF pooling;
    the authors set rates layer by layer). With ``features_only`` the groups' outputs.
    """

    def __init__(
        self,
        groups: Groups = VARIANTS["cifar-5m"][0],
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        width: float = 1.0,
        strides: Sequence[int] = (),
        dropout: float = 0.0,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        if not groups or not all(groups):
            raise InputError("SimpleNet needs at least one convolution in every group")
        rest, channels, built = list(strides), in_channels, []
        reach: list[int] = []
        for i, group in enumerate(groups):
            layers: list[nn.Module] = []
            if i:
                layers += [nn.MaxPool2d(2), nn.Dropout(dropout)]
                reach.append(0)
            for signed in group:
                outputs, stride = round(abs(signed) * width), rest.pop(0) if rest else 1
                layers += conv_bn_relu(channels, outputs, 1 if signed < 0 else 3, stride)
                reach.append(stride)
                channels = outputs
            built.append(nn.Sequential(*layers))
        self.least = _least(reach)
        self.stages = nn.ModuleList(built)
        self.pool, self.flatten = nn.AdaptiveMaxPool2d(1), nn.Flatten(1)
        self.head = None if features_only else nn.Linear(channels, num_classes)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.xavier_uniform_(m.weight, gain=nn.init.calculate_gain("relu"))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to logits, or to the groups' features."""
        need_size(x, network="this SimpleNet", minimum=self.least)
        features = tapped(self.stages, x, range(len(self.stages)))
        if self.head is None:
            return features
        return self.head(self.flatten(self.pool(features[-1])))


def conv_bn_relu(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
    """Convolution with a bias, batch norm of momentum 0.05, ReLU, as the authors' code."""
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2),
        nn.BatchNorm2d(outputs, momentum=0.05),
        nn.ReLU(inplace=True),
    ]


def _least(reach: Sequence[int]) -> int:
    """The smallest side that leaves one pixel: strides of convolutions, 0 for a 2x2 pool."""
    side = 1
    for stride in reversed(reach):
        side = 2 * side if stride == 0 else stride * (side - 1) + 1
    return side


def simplenet(
    variant: str = "cifar-5m",
    num_classes: int | None = None,
    in_channels: int = 3,
    *,
    dropout: float = 0.0,
    features_only: bool = False,
) -> SimpleNet:
    """A published network (``VARIANTS``); classes are those of its data set unless given.

    ``m1`` and ``m2`` are the authors' stride modes. Raises ``UnknownName`` for another variant.
    """
    if variant not in VARIANTS:
        raise UnknownName("SimpleNet", variant, list(VARIANTS))
    groups, width, strides, classes = VARIANTS[variant]
    return SimpleNet(
        groups,
        classes if num_classes is None else num_classes,
        in_channels,
        width=width,
        strides=strides,
        dropout=dropout,
        features_only=features_only,
    )
