"""UniRepLKNet: few large kernels, many small (Ding et al. 2024, arXiv:2311.15599, 2410.08049).

Trained with parallel dilated branches; ``paredown.nn.reparameterise`` merges them, the batch norms,
the layer scale and the bias of the response norm. The paper's figures are of the merged network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paredown.errors import InputError, UnknownName
from paredown.nn.drop import drop_path, rising_rates
from paredown.nn.features import need_size, tapped
from paredown.nn.init import small_init
from paredown.nn.norm import GlobalResponseNorm, LayerNorm2d, LayerScale
from paredown.nn.reparam import DilatedReparamConv, fold_norm
from paredown.nn.squeeze import SqueezeExcite

# The small branches beside a large kernel: taps and dilation (authors' code).
BRANCHES: dict[int, tuple[tuple[int, int], ...]] = {
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    7: ((5, 1), (3, 2), (3, 3)),
}

# Width of the first stage (it doubles), depths, kernels that take turns in the third stage.
VARIANTS: dict[str, tuple[int, tuple[int, ...], tuple[int, ...]]] = {
    "a": (40, (2, 2, 6, 2), (13,)),
    "f": (48, (2, 2, 6, 2), (13,)),
    "p": (64, (2, 2, 6, 2), (13,)),
    "n": (80, (2, 2, 8, 2), (13,)),
    "t": (80, (3, 3, 18, 3), (13, 3)),
    "s": (96, (3, 3, 27, 3), (13, 3, 3)),
    "b": (128, (3, 3, 27, 3), (13, 3, 3)),
    "l": (192, (3, 3, 27, 3), (13, 3, 3)),
    "xl": (256, (3, 3, 27, 3), (13, 3, 3)),
}


class MergedBlock(nn.Module):
    """The block to run: depthwise, squeeze-excite, linear, GELU, response norm, linear, skip."""

    def __init__(self, channels: int, kernel: int, *, expand: int = 4) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.squeeze = SqueezeExcite(channels, channels // 4)
        self.fc1, self.act = nn.Linear(channels, expand * channels), nn.GELU()
        self.response = GlobalResponseNorm(expand * channels, channels_last=True, bias=False)
        self.fc2 = nn.Linear(expand * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        y = self.squeeze(self.depthwise(x)).permute(0, 2, 3, 1)
        return x + self.fc2(self.response(self.act(self.fc1(y)))).permute(0, 3, 1, 2)


class UniRepLKBlock(nn.Module):
    """The block to train (section 3.1): as :class:`MergedBlock`, with branches, norms and a scale.

    Kernels of 7 or more taps have dilated branches beside them. ``fuse()`` merges everything.
    """

    def __init__(
        self, channels: int, kernel: int, *, expand: int = 4, scale: float = 1e-6, drop: float = 0.0
    ) -> None:
        super().__init__()
        self.channels, self.kernel, self.expand = channels, kernel, expand
        self.depthwise = (
            DilatedReparamConv(channels, kernel, BRANCHES[kernel])
            if kernel in BRANCHES
            else nn.Conv2d(
                channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False
            )
        )
        self.norm = nn.BatchNorm2d(channels)
        self.squeeze = SqueezeExcite(channels, channels // 4)
        self.fc1, self.act = nn.Linear(channels, expand * channels), nn.GELU()
        self.response = GlobalResponseNorm(expand * channels, channels_last=True)
        self.fc2 = nn.Linear(expand * channels, channels, bias=False)
        self.norm2, self.scale = nn.BatchNorm2d(channels), LayerScale(channels, scale, dim=1)
        self.drop = drop_path(drop)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        y = self.squeeze(self.norm(self.depthwise(x))).permute(0, 2, 3, 1)
        y = self.fc2(self.response(self.act(self.fc1(y)))).permute(0, 3, 1, 2)
        return x + self.drop(self.scale(self.norm2(y)))

    @torch.no_grad()
    def fuse(self) -> MergedBlock:
        """The block to run, equal in evaluation mode."""
        out = MergedBlock(self.channels, self.kernel, expand=self.expand).to(self.fc1.weight)
        conv = (
            self.depthwise.fuse()
            if isinstance(self.depthwise, DilatedReparamConv)
            else self.depthwise
        )
        weight, bias = fold_norm(conv.weight, conv.bias, self.norm)
        out.depthwise.weight.copy_(weight)
        assert out.depthwise.bias is not None
        out.depthwise.bias.copy_(bias)
        out.squeeze.load_state_dict(self.squeeze.state_dict())
        out.fc1.load_state_dict(self.fc1.state_dict())
        out.response.gamma.copy_(self.response.gamma)
        # The response norm's bias passes the linear map, its batch norm, then the scale.
        assert self.response.beta is not None
        shift = self.fc2.weight @ self.response.beta.reshape(-1)
        weight, bias = fold_norm(self.fc2.weight[:, :, None, None], shift, self.norm2)
        gamma = self.scale.gamma.reshape(-1)
        out.fc2.weight.copy_(weight[:, :, 0, 0] * gamma[:, None])
        out.fc2.bias.copy_(bias * gamma)
        return out.eval()


class UniRepLKNet(nn.Module):
    """UniRepLKNet for ``(batch, in_channels, h, w)`` images of any size.

    Returns logits ``(batch, num_classes)``, or with ``features_only`` the outputs of the stages
    (strides 4 to 32). ``kernels`` has one kernel size per block and stage. ``merged`` builds the
    network to run, without branches. ``stride`` is that of the stem, 4 or 2.
    """

    def __init__(
        self,
        widths: Sequence[int],
        kernels: Sequence[Sequence[int]],
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        merged: bool = False,
        stride: int = 4,
        scale: float = 1e-6,
        drop: float = 0.0,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        odd = [k for row in kernels for k in row if k not in BRANCHES and k not in (3, 5)]
        if odd:
            raise InputError(f"kernels are 3, 5 or one of {sorted(BRANCHES)}, got {odd[0]}")
        if stride not in (2, 4):
            raise InputError(f"the stem's stride is 2 or 4, got {stride}")
        rates = iter(rising_rates(drop, sum(len(row) for row in kernels)))
        stages: list[nn.Module] = []
        for i, (width, row) in enumerate(zip(widths, kernels, strict=True)):
            if i:
                layers = shrink(widths[i - 1], width)
            else:
                half = width // 2
                layers = [*shrink(in_channels, half), nn.GELU(), *shrink(half, width, stride // 2)]
            for kernel in row:
                rate = next(rates)
                layers.append(
                    MergedBlock(width, kernel)
                    if merged
                    else UniRepLKBlock(width, kernel, scale=scale, drop=rate)
                )
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6) if not features_only else nn.Identity()
        self.head = nn.Linear(widths[-1], num_classes) if not features_only else None
        self.apply(small_init)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to logits, or to the stages' features."""
        need_size(x, network="UniRepLKNet")
        maps = tapped(self.stages, x, range(len(self.stages)))
        return maps if self.head is None else self.head(self.norm(maps[-1].mean((2, 3))))


def shrink(inputs: int, outputs: int, stride: int = 2) -> list[nn.Module]:
    """3x3 convolution, strided, and a layer norm over channels."""
    return [nn.Conv2d(inputs, outputs, 3, stride, 1), LayerNorm2d(outputs, eps=1e-6)]


def unireplknet(
    variant: str = "a",
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    merged: bool = False,
    drop: float = 0.0,
    features_only: bool = False,
) -> UniRepLKNet:
    """A published size (``VARIANTS``). Raises ``UnknownName`` for another."""
    if variant not in VARIANTS:
        raise UnknownName("UniRepLKNet", variant, list(VARIANTS))
    width, depths, turns = VARIANTS[variant]
    third = [turns[i % len(turns)] for i in range(depths[2])]
    kernels = ([3] * depths[0], [13] * depths[1], third, [13] * depths[3])
    return UniRepLKNet(
        [width * 2**i for i in range(4)],
        kernels,
        num_classes,
        in_channels,
        merged=merged,
        drop=drop,
        features_only=features_only,
    )
