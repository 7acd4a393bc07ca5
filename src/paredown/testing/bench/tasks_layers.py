"""Tasks with weights: convolutions, products, norms, attention, fused chains, small networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.nn.conv import ConvNormAct, classifier
from paredown.nn.inverted import InvertedResidual
from paredown.nn.transformer import EncoderBlock
from paredown.testing.bench.task import Function, Task, add, normal

IMAGE = (1, 32, 28, 28)


class _Attention(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)


class _Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(96, 192), nn.Linear(96, 192), nn.Linear(192, 96)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x)) + x


def _statistics(module: nn.Module) -> nn.Module:
    for m in module.modules():
        if (
            isinstance(m, nn.BatchNorm2d)
            and m.running_mean is not None
            and m.running_var is not None
        ):
            nn.init.uniform_(m.running_mean, -0.5, 0.5)
            nn.init.uniform_(m.running_var, 0.5, 2.0)
    return module


def _conv(*args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(*args, **kwargs)


def _chain(*parts: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: _statistics(nn.Sequential(*(p() for p in parts)))


@cache
def fill() -> None:
    """Put them on the bench, once."""
    image = normal(IMAGE)
    for name, build in {
        "conv-3x3": _conv(32, 48, 3, padding=1),
        "conv-3x3-stride-2": _conv(32, 48, 3, 2, 1),
        "conv-1x1": _conv(32, 64, 1),
        "conv-depthwise-5x5": _conv(32, 32, 5, padding=2, groups=32),
        "conv-dilated": _conv(32, 32, 3, padding=2, dilation=2),
    }.items():
        add(Task(name, "convolution", build, image))
    tokens = normal((4, 64, 96))
    add(Task("linear", "matmul", lambda: nn.Linear(96, 192), tokens))
    add(Task("linear-one-row", "matmul", lambda: nn.Linear(512, 512), normal((1, 512))))
    add(Task("product", "matmul", lambda: Function(torch.matmul), normal((96, 130), (130, 70))))
    add(Task("product-batched", "matmul", lambda: Function(torch.bmm),
             normal((8, 33, 64), (8, 64, 49))))  # fmt: skip
    for name, build in {
        "batch-norm": _chain(lambda: nn.BatchNorm2d(32)),
        "group-norm": lambda: nn.GroupNorm(4, 32),
    }.items():
        add(Task(name, "normalization", build, image))
    add(Task("layer-norm", "normalization", lambda: nn.LayerNorm(96), tokens))
    add(Task("rms-norm", "normalization", lambda: nn.RMSNorm(96), tokens))
    heads = normal(*[(2, 4, 65, 32)] * 3)
    add(Task("attention", "attention", lambda: _Attention(False), heads))
    add(Task("attention-causal", "attention", lambda: _Attention(True), heads))
    conv = _conv(32, 32, 3, padding=1)
    add(Task("conv-norm-relu", "fusion", _chain(conv, lambda: nn.BatchNorm2d(32), nn.ReLU), image))
    add(Task("linear-gelu", "fusion", _chain(lambda: nn.Linear(96, 192), nn.GELU), tokens))
    add(Task("gated-linear-residual", "fusion", _Gated, tokens))
    add(Task("conv-pool-swish", "fusion", _chain(conv, lambda: nn.MaxPool2d(2), nn.Hardswish),
             image))  # fmt: skip
    add(Task("mlp", "architecture",
             _chain(lambda: nn.Linear(256, 512), nn.ReLU, lambda: nn.Linear(512, 10)),
             normal((8, 256))))  # fmt: skip
    add(Task("inverted-residual-net", "architecture",
             _chain(lambda: ConvNormAct(3, 16, 3, stride=2), lambda: InvertedResidual(16, 16),
                    lambda: InvertedResidual(16, 24, stride=2), lambda: classifier(24, 10)),
             normal((1, 3, 64, 64))))  # fmt: skip
    add(Task("encoder-block", "architecture", lambda: EncoderBlock(96, 4, 2.0), tokens))
