"""U-Net: contract, expand, copy across (Ronneberger et al. 2015, arXiv:1505.04597, figure 1).

Unpadded ("valid") convolutions by default, as in the paper: a 572 x 572 image gives 388 x 388
scores. The paper prints no parameter count.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.nn.conv import he_init, relu
from paredown.nn.features import need_size


def double_conv(inputs: int, outputs: int, *, padding: int, norm: bool) -> nn.Sequential:
    """Two 3x3 convolutions, each with (norm and) ReLU."""
    layers: list[nn.Module] = []
    for i in range(2):
        layers.append(nn.Conv2d(outputs if i else inputs, outputs, 3, padding=padding))
        if norm:
            layers.append(nn.BatchNorm2d(outputs))
        layers.append(relu())
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """U-Net for ``(batch, in_channels, h, w)`` images, scores ``(batch, num_classes, h', w')``.

    ``width`` doubles at each of ``depth`` halvings. ``padded`` keeps the size (sides are multiples
    of ``2 ** depth``); unpadded, sides must be ``2 ** depth`` times a whole number plus what
    :meth:`margin` says, and the scores are smaller. ``norm`` adds batch norms, which the paper has
    not. With ``features_only`` the output is a list: the contracting path's maps (strides 1 to
    ``2 ** depth``). Raises ``InputError`` for other sizes, naming the nearest that fits.
    """

    def __init__(
        self,
        num_classes: int = 2,
        in_channels: int = 1,
        *,
        width: int = 64,
        depth: int = 4,
        padded: bool = False,
        norm: bool = False,
        dropout: float = 0.5,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        self.depth, self.padded = depth, padded
        pad = 1 if padded else 0
        widths = [width * 2**i for i in range(depth + 1)]
        ends = [in_channels, *widths]
        self.down = nn.ModuleList(
            double_conv(ends[i], ends[i + 1], padding=pad, norm=norm) for i in range(depth + 1)
        )
        self.pool = nn.MaxPool2d(2)
        # At the end of the contracting path (section 3.1).
        self.dropout = nn.Dropout(dropout)
        self.head = None
        if not features_only:
            self.grow = nn.ModuleList(
                nn.ConvTranspose2d(widths[i + 1], widths[i], 2, 2) for i in reversed(range(depth))
            )
            self.up = nn.ModuleList(
                double_conv(widths[i + 1], widths[i], padding=pad, norm=norm)
                for i in reversed(range(depth))
            )
            self.head = nn.Conv2d(width, num_classes, 1)
        he_init(self)

    def margin(self) -> int:
        """Pixels a side that unpadded convolutions take on the way down: 60 at depth 4."""
        return sum(4 * 2**i for i in range(self.depth))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to scores per pixel, or to the contracting path's maps."""
        self._check(x)
        maps: list[Tensor] = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else self.pool(x))
            maps.append(x)
        if self.head is None:
            return maps
        x = self.dropout(x)
        for grow, block, across in zip(self.grow, self.up, reversed(maps[:-1]), strict=True):
            x = grow(x)
            x = block(torch.cat((_cropped(across, x), x), 1))
        return self.head(x)

    def _check(self, x: Tensor) -> None:
        step = 2**self.depth
        if self.padded:
            need_size(x, network="U-Net", multiple=step, minimum=step)
            return
        margin, least = self.margin(), self._least()
        for side in x.shape[-2:]:
            if side < least or (side - margin) % step:
                near = max(least, margin + round((side - margin) / step) * step)
                raise InputError(
                    f"U-Net without padding takes sides of {least} plus multiples of {step}, "
                    f"got {side}: use {near}, or build it with padded=True"
                )

    def _least(self) -> int:
        """The smallest side: one that leaves a pixel after the way up."""
        step = 2**self.depth
        side = self.margin() + step
        while self._out(side) < 1:
            side += step
        return side

    def _out(self, side: int) -> int:
        """Side of the scores of an unpadded network."""
        low = (side - self.margin()) // 2**self.depth - 4
        if low < 1:
            return 0
        for _ in range(self.depth):
            low = 2 * low - 4
        return low


def _cropped(x: Tensor, like: Tensor) -> Tensor:
    """The middle of a map, of another map's size."""
    top, left = (x.shape[2] - like.shape[2]) // 2, (x.shape[3] - like.shape[3]) // 2
    return x[:, :, top : top + like.shape[2], left : left + like.shape[3]]
