"""FFNet of MetaMixer: attention as a feed-forward net (Yun et al. 2024, arXiv:2406.02021).

``paredown.nn.reparameterise`` folds the two-branch convolutions, the pre-norm skips and the batch
norms; the paper's figures are of the folded network.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from paredown.errors import InputError, UnknownName
from paredown.nn.act import Activation, gelu
from paredown.nn.conv import classifier, conv_like
from paredown.nn.drop import drop_path, rising_rates
from paredown.nn.features import need_size, tapped
from paredown.nn.init import small_init
from paredown.nn.norm import LayerScale
from paredown.nn.reparam import RepConv, reparameterise

# Widths, depths, kernel of the channel mixers, layer scale (none for 0).
VARIANTS: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, float]] = {
    "1": ((80, 160, 320, 640), (2, 2, 8, 2), 3, 0.0),
    "2": ((88, 176, 352, 704), (3, 3, 15, 3), 7, 0.0),
    "3": ((96, 192, 384, 768), (4, 4, 22, 5), 7, 1e-6),
    "4": ((128, 256, 512, 1024), (4, 4, 27, 3), 7, 1e-6),
}


def conv_norm(inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1) -> RepConv:
    """A convolution with a batch norm behind, which fold into one."""
    return RepConv(inputs, outputs, kernel, stride=stride, pointwise=False, identity=False)


def depthwise(inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> RepConv:
    """A depthwise convolution and its norm; 7x7 ones have a 3x3 branch beside them.

    With more outputs than inputs each channel makes several.
    """
    return RepConv(
        inputs,
        outputs,
        kernel,
        stride=stride,
        groups=inputs,
        small=3,
        pointwise=kernel == 7,
        identity=False,
    )


class TokenMixer(nn.Module):
    """FFN-ified attention (equation 5): query by 1x1, keys and values depthwise convolutions.

    The activation stands in place of the softmax. Convolutions of 7x7 have two branches, smaller
    ones a bias and no norm.
    """

    def __init__(self, channels: int, kernel: int, *, act: Activation = gelu) -> None:
        super().__init__()

        def lookup() -> nn.Module:
            if kernel == 7:
                return depthwise(channels, channels, 7)
            return nn.Conv2d(channels, channels, kernel, 1, kernel // 2, groups=channels)

        self.query = conv_norm(channels, channels)
        self.keys, self.act, self.values = lookup(), act(), lookup()

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        return self.values(self.act(self.keys(self.query(x))))


class ChannelMixer(nn.Module):
    """Depthwise convolution with a norm, 1x1 to ``expand`` times the width, GELU, 1x1 back."""

    def __init__(self, channels: int, kernel: int, *, expand: int = 3) -> None:
        super().__init__()
        self.near = depthwise(channels, channels, kernel)
        self.fc1, self.act = nn.Conv2d(channels, expand * channels, 1), nn.GELU()
        self.fc2 = nn.Conv2d(expand * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        return self.fc2(self.act(self.fc1(self.near(x))))


class FFBlock(nn.Module):
    """A token mixer and a channel mixer, each on a residual, scaled where ``scale`` is not 0."""

    def __init__(
        self, channels: int, mixer: nn.Module, kernel: int, *, scale: float = 0, drop: float = 0.0
    ) -> None:
        super().__init__()
        self.token, self.channel = mixer, ChannelMixer(channels, kernel)
        self.scale1 = LayerScale(channels, scale, dim=1) if scale else nn.Identity()
        self.scale2 = LayerScale(channels, scale, dim=1) if scale else nn.Identity()
        self.drop = drop_path(drop)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        x = x + self.drop(self.scale1(self.token(x)))
        return x + self.drop(self.scale2(self.channel(x)))


class NormedSkip(nn.Module):
    """``x + conv1x1(norm(x))``; ``fuse()`` gives one 1x1 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        return x + self.conv(self.norm(x))

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """The equal convolution in evaluation mode."""
        norm, weight = self.norm, self.conv.weight
        assert norm.running_mean is not None
        assert norm.running_var is not None
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        out = conv_like(self.conv, bias=True)
        eye = torch.eye(weight.shape[0]).to(weight)[:, :, None, None]
        out.weight.copy_(weight * gain[:, None, None] + eye)
        assert out.bias is not None
        out.bias.copy_(weight[:, :, 0, 0] @ (norm.bias - norm.running_mean * gain))
        return out.eval()


class FFNet(nn.Module):
    """FFNet for ``(batch, in_channels, h, w)`` images of any size.

    Returns logits ``(batch, num_classes)``, or with ``features_only`` the outputs of the four
    stages (strides 4 to 32). ``mixers`` are the token mixers' kernels per stage, ``kernel`` that of
    the channel mixers; ``act`` is the token mixers' activation, ``stem`` the first convolution's
    width and ``stride`` both stem convolutions' together (4 or 2).
    """

    def __init__(
        self,
        widths: Sequence[int] = (80, 160, 320, 640),
        depths: Sequence[int] = (2, 2, 8, 2),
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        mixers: Sequence[int] = (3, 3, 7, 7),
        kernel: int = 3,
        stem: int = 64,
        stride: int = 4,
        scale: float = 0.0,
        drop: float = 0.0,
        act: Activation = gelu,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        for before, after in pairwise(widths):
            if after % before:
                raise InputError(f"each width is a multiple of the one before, got {list(widths)}")
        if stride not in (2, 4):
            raise InputError(f"the stem's stride is 2 or 4, got {stride}")
        rates = iter(rising_rates(drop, sum(depths)))
        stages: list[nn.Module] = []
        for i, (width, depth, mixer) in enumerate(zip(widths, depths, mixers, strict=True)):
            if i:
                layers: list[nn.Module] = [
                    depthwise(widths[i - 1], width, 7, stride=2),
                    NormedSkip(width),
                ]
            else:
                layers = [
                    conv_norm(in_channels, stem, 3, stride=2),
                    nn.GELU(),
                    conv_norm(stem, width, 3, stride=stride // 2),
                ]
            for _ in range(depth):
                token = TokenMixer(width, mixer, act=act)
                layers.append(FFBlock(width, token, kernel, scale=scale, drop=next(rates)))
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.BatchNorm2d(widths[-1]) if not features_only else nn.Identity()
        self.head = classifier(widths[-1], num_classes) if not features_only else None
        self.apply(small_init)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to logits, or to the stages' features."""
        need_size(x, network="FFNet")
        maps = tapped(self.stages, x, range(len(self.stages)))
        return maps if self.head is None else self.head(self.norm(maps[-1]))


def ffnet(
    variant: str = "1",
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    folded: bool = False,
    drop: float = 0.0,
    features_only: bool = False,
) -> nn.Module:
    """A published size, 1 to 4; ``folded``: to run only. Raises ``UnknownName`` for another."""
    if variant not in VARIANTS:
        raise UnknownName("FFNet", variant, list(VARIANTS))
    widths, depths, kernel, scale = VARIANTS[variant]
    net = FFNet(
        widths,
        depths,
        num_classes,
        in_channels,
        kernel=kernel,
        scale=scale,
        drop=drop,
        features_only=features_only,
    )
    return reparameterise(net) if folded else net
