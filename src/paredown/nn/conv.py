"""Convolutional blocks of the zoo: conv-norm-activation, residual, dense and one-shot blocks.

Every block maps ``(batch, channels, height, width)`` to the same layout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paredown.nn.act import Activation, relu, relu6

__all__ = [
    "Activation",
    "BasicBlock",
    "Bottleneck",
    "ConvNormAct",
    "DenseBlock",
    "DenseLayer",
    "OneShotAggregation",
    "classifier",
    "conv_like",
    "he_init",
    "projection",
    "relu",
    "relu6",
    "round_channels",
]


def round_channels(channels: float, multiple: int = 8) -> int:
    """Channels rounded to a multiple, never down by more than 10 % (MobileNetV2's rule)."""
    rounded = max(multiple, int(channels + multiple / 2) // multiple * multiple)
    return rounded + multiple if rounded < 0.9 * channels else rounded


def conv_like(
    conv: nn.Conv2d,
    *,
    kind: type[nn.Conv2d] = nn.Conv2d,
    outputs: int | None = None,
    groups: int | None = None,
    bias: bool | None = None,
) -> nn.Conv2d:
    """A convolution of another one's geometry, device and dtype, with weights of its own."""
    like: Any = conv  # torch types its sizes as tuples of any length
    return kind(
        conv.in_channels,
        conv.out_channels if outputs is None else outputs,
        like.kernel_size,
        like.stride,
        like.padding,
        like.dilation,
        conv.groups if groups is None else groups,
        conv.bias is not None if bias is None else bias,
        like.padding_mode,
        conv.weight.device,
        conv.weight.dtype,
    )


class ConvNormAct(nn.Module):
    """Convolution (without ``bias``), batch norm, activation (``act=None``: linear).

    ``kernel`` may be a pair ``(height, width)``. ``padding`` None keeps the size ("same", for odd
    kernels at stride 1); 0 is the "valid" convolution. ``eps`` is the norm's.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int] = 1,
        *,
        stride: int = 1,
        padding: int | tuple[int, int] | None = None,
        dilation: int = 1,
        groups: int = 1,
        act: Activation | None = relu,
        eps: float = 1e-5,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if padding is None:
            high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
            padding = (dilation * (high // 2), dilation * (wide // 2))
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride, padding, dilation, groups=groups, bias=bias
        )
        self.norm = nn.BatchNorm2d(outputs, eps=eps)
        self.act = act() if act is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, h, w)`` to ``(batch, outputs, h / stride, w / stride)``."""
        return self.act(self.norm(self.conv(x)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around an identity or projected skip (ResNet, He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvNormAct(inputs, outputs, 3, stride=stride),
            ConvNormAct(outputs, outputs, 3, act=None),
        )
        self.skip = projection(inputs, outputs, stride)
        self.act = relu()

    def forward(self, x: Tensor) -> Tensor:
        """Body plus skip, then ReLU."""
        return self.act(self.body(x) + self.skip(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided, possibly grouped), 1x1 around a skip (ResNet-B; RegNet's X block).

    ``inner`` is the width of the 3x3 convolution.
    """

    def __init__(
        self, inputs: int, inner: int, outputs: int, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvNormAct(inputs, inner),
            ConvNormAct(inner, inner, 3, stride=stride, groups=groups),
            ConvNormAct(inner, outputs, act=None),
        )
        self.skip = projection(inputs, outputs, stride)
        self.act = relu()

    def forward(self, x: Tensor) -> Tensor:
        """Body plus skip, then ReLU."""
        return self.act(self.body(x) + self.skip(x))


def projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The skip of a residual block: identity where shapes agree, else a strided 1x1 convolution."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return ConvNormAct(inputs, outputs, stride=stride, act=None)


class OneShotAggregation(nn.Module):
    """VoVNet's OSA: a chain of 3x3 convolutions, all concatenated once (Lee et al. 2019)."""

    def __init__(self, inputs: int, width: int, outputs: int, *, layers: int = 5) -> None:
        super().__init__()
        self.chain = nn.ModuleList(
            ConvNormAct(inputs if i == 0 else width, width, 3) for i in range(layers)
        )
        self.mix = ConvNormAct(inputs + layers * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, h, w)`` to ``(batch, outputs, h, w)``."""
        seen = [x]
        for layer in self.chain:
            seen.append(layer(seen[-1]))
        return self.mix(torch.cat(seen, 1))


class DenseLayer(nn.Module):
    """DenseNet-B layer: norm, ReLU, 1x1 to ``bottleneck * growth``; norm, ReLU, 3x3.

    With ``dims`` 3 the maps are volumes and the kernels 1x1x1 and 3x3x3.
    """

    def __init__(self, inputs: int, growth: int, bottleneck: int = 4, *, dims: int = 2) -> None:
        super().__init__()
        inner = bottleneck * growth
        conv, norm = (nn.Conv3d, nn.BatchNorm3d) if dims == 3 else (nn.Conv2d, nn.BatchNorm2d)
        self.norm1, self.act1 = norm(inputs), relu()
        self.conv1 = conv(inputs, inner, 1, bias=False)
        self.norm2, self.act2 = norm(inner), relu()
        self.conv2 = conv(inner, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, ..., h, w)`` to the ``growth`` new channels."""
        return self.conv2(self.act2(self.norm2(self.conv1(self.act1(self.norm1(x))))))


class DenseBlock(nn.Module):
    """Each layer reads the concatenation of all before it (DenseNet, Huang et al. 2017)."""

    def __init__(
        self, inputs: int, growth: int, layers: int, bottleneck: int = 4, *, dims: int = 2
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DenseLayer(inputs + i * growth, growth, bottleneck, dims=dims) for i in range(layers)
        )
        self.outputs = inputs + layers * growth

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, ..., h, w)`` to ``inputs + layers * growth`` channels."""
        seen = [x]
        for layer in self.layers:
            seen.append(layer(torch.cat(seen, 1)))
        return torch.cat(seen, 1)


def classifier(features: int, classes: int, *, dropout: float = 0.0) -> nn.Sequential:
    """Global average pool, flatten, linear: ``(batch, features, h, w)`` to ``(batch, classes)``."""
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten(1)]
    if dropout:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(features, classes))


def he_init(model: nn.Module) -> None:
    """He initialisation (fan out) of convolutions, ones and zeros for norms, small linear heads."""
    for m in model.modules():
        if isinstance(m, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif isinstance(m, (nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.ones_(m.weight)
            nn.init.zeros_(m.bias)
        elif isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, std=0.01)
            nn.init.zeros_(m.bias)
