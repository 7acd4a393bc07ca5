"""Translation-variant convolution (TVConv, Chen et al. 2022, arXiv:2203.10489, section 3.2).

A depthwise convolution with another kernel at every pixel, the same for all images. For inputs of
a fixed layout, such as aligned faces. MACs are those of a depthwise convolution, but the weights
are taps times the output map: heavy to move at high resolution.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.nn.dynamic import dynamic_depthwise


class TranslationVariantConv(nn.Module):
    """Kernels ``(channels, taps, h, w)`` made by a small network from learned affinity maps.

    ``size`` (h, w) is the output's. The affinity maps start at one; ``layers`` hidden convolutions
    of ``hidden`` channels follow the first. ``fuse()`` runs the generator once and keeps the
    kernels. Raises ``InputError`` for an even kernel.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        kernel: int = 3,
        *,
        stride: int = 1,
        affinity: int = 4,
        hidden: int = 16,
        layers: int = 1,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise InputError(f"the kernel must be odd, got {kernel}")
        self.channels, self.size, self.kernel, self.stride = channels, size, kernel, stride
        self.affinity = nn.Parameter(torch.ones(1, affinity, *size))
        body: list[nn.Module] = []
        for inputs in [affinity] + [hidden] * layers:
            body += [
                nn.Conv2d(inputs, hidden, 3, padding=1, bias=False),
                nn.LayerNorm([hidden, *size]),
                nn.ReLU(inplace=True),
            ]
        self.generator = nn.Sequential(
            *body, nn.Conv2d(hidden, channels * kernel * kernel, 3, padding=1, bias=False)
        )

    def kernels(self) -> Tensor:
        """``(1, channels, taps, h, w)``, taps row by row."""
        made = self.generator(self.affinity)
        return made.reshape(1, self.channels, self.kernel**2, *self.size)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h * stride, w * stride)`` to ``(batch, channels, h, w)``."""
        return dynamic_depthwise(x, self.kernels(), self.stride)

    @torch.no_grad()
    def fuse(self) -> FixedVariantConv:
        """The same layer with its kernels as constants, for inference."""
        return FixedVariantConv(self.kernels(), self.stride)


class FixedVariantConv(nn.Module):
    """A depthwise convolution with given kernels ``(1, channels, taps, h, w)`` per output pixel."""

    def __init__(self, kernels: Tensor, stride: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(kernels.detach().clone())
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h * stride, w * stride)`` to ``(batch, channels, h, w)``."""
        return dynamic_depthwise(x, self.weight, self.stride)


def vary(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy whose depthwise convolutions are translation-variant, for images like ``example``.

    Depthwise ones with odd square kernels, "same" padding and no bias are replaced, with new
    weights; raises ``InputError`` where there is none.
    """
    out = copy.deepcopy(model)
    sizes: dict[str, tuple[int, int]] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _, __, y: sizes.update({name: (y.shape[-2], y.shape[-1])})

    hooks = [
        m.register_forward_hook(note(name))
        for name, m in out.named_modules()
        if isinstance(m, nn.Conv2d) and _replaceable(m)
    ]
    training = out.training
    with torch.no_grad():
        out.eval()(example)
    out.train(training)
    for hook in hooks:
        hook.remove()
    if not sizes:
        raise InputError("the model has no depthwise convolution to make translation-variant")
    for name, size in sizes.items():
        conv = out.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        new = TranslationVariantConv(
            conv.in_channels, size, conv.kernel_size[0], stride=conv.stride[0]
        )
        parent, _, last = name.rpartition(".")
        setattr(out.get_submodule(parent), last, new.to(conv.weight))
    return out


def _replaceable(conv: nn.Conv2d) -> bool:
    side = conv.kernel_size[0]
    return (
        conv.groups == conv.in_channels == conv.out_channels
        and conv.groups > 1
        and conv.bias is None
        and conv.kernel_size == (side, side)
        and side % 2 == 1
        and conv.padding == (side // 2, side // 2)
        and conv.dilation == (1, 1)
        and conv.stride[0] == conv.stride[1]
        and conv.padding_mode == "zeros"
    )
